"""Duplicates: the right rows in the right groups for any blocks, and nothing lost when a run is stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.cli import cli
from clip_retrieval.curate import pairs, placed
from clip_retrieval.curate.config import DedupConfig
from clip_retrieval.curate.dedup import DedupResult, run_dedup
from clip_retrieval.curate.workspace import WORK_FOLDER, Workspace
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.options import build_config

Rows = NDArray[np.float32]
WriteRun = Callable[..., Path]


def dedup(folder: Path, output: Path, **options: Any) -> DedupResult:
    return run_dedup(build_config(DedupConfig, options, (str(folder), str(output))))


def groups_of(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "groups.parquet")


def near(row: Rows, cosine: float, seed: int) -> Rows:
    """Return a unit row with this cosine to another."""
    other = np.random.default_rng(seed).standard_normal(len(row)).astype(np.float32)
    other -= (other @ row) * row
    other /= np.linalg.norm(other)
    found: Rows = (cosine * row + np.sqrt(1 - cosine**2) * other).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def planted(unit_rows: Callable[..., Rows]) -> Rows:
    """Return 900 rows of 32 dimensions, clumped, and near-duplicates of them at many distances, in random order."""
    centers = unit_rows(30, 32, 1)
    random = np.random.default_rng(2)
    rows = centers[random.integers(0, 30, 900)] + 0.35 * unit_rows(900, 32, 3)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    copies = [near(rows[i], cosine, i) for i, cosine in enumerate(np.linspace(0.85, 1.0, 300))]
    joined = np.concatenate([rows, np.stack(copies), rows[:20]])
    mixed: Rows = joined[random.permutation(len(joined))].astype(np.float16).astype(np.float32)
    return mixed


def reference(rows: Rows, threshold: float) -> NDArray[np.int64]:
    """Return the leaders of a greedy cover by brute force in float64."""
    wide = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    alike = np.round(wide @ wide.T, 9) >= threshold
    leaders = np.arange(len(rows))
    for row in range(len(rows)):
        earlier = [kept for kept in np.flatnonzero(alike[row, :row]) if leaders[kept] == kept]
        leaders[row] = earlier[0] if earlier else row
    return leaders


def leaders_in(table: pd.DataFrame, count: int) -> NDArray[np.int64]:
    leaders = np.arange(count)
    kept = table[table.kept].set_index("cluster")["id"]
    for row, cluster in zip(table["id"], table["cluster"], strict=True):
        leaders[row] = kept[cluster]
    return leaders


@pytest.mark.parametrize("blocks", [1, 7, 40])
def test_groups_are_those_of_brute_force_whatever_the_blocks(
    planted: Rows, write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr(placed, "PART_ROWS", 400)
    monkeypatch.setattr(placed, "chunk_size", lambda _count: 150)
    folder = write_run(tmp_path / "run", [planted[:500], planted[500:]])
    found = dedup(folder, tmp_path / "out", threshold=0.93, blocks=blocks, exact=True)
    table = groups_of(tmp_path / "out")
    np.testing.assert_array_equal(leaders_in(table, len(planted)), reference(planted, 0.93))
    assert found.duplicates > 200
    assert (table.similarity >= 0.93).all()
    assert (table[~table.kept].why != "").all()


def test_blocks_without_the_sound_bound_find_nearly_all_and_say_how_many(
    planted: Rows, write_run: WriteRun, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", [planted])
    found = dedup(folder, tmp_path / "out", threshold=0.93, blocks=20, exact=False, check_rows=len(planted))
    assert found.recall is not None
    assert found.recall.rows == len(np.unique(planted, axis=0))
    assert found.recall.pairs > 300
    assert found.recall.found >= 0.97 * found.recall.pairs


def test_a_chain_is_cut_where_its_ends_are_unlike(write_run: WriteRun, tmp_path: Path) -> None:
    angles = np.deg2rad(15 * np.arange(6))
    rows = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1).astype(np.float32)
    folder = write_run(tmp_path / "run", [rows])
    dedup(folder, tmp_path / "out", threshold=np.cos(np.deg2rad(16)))
    table = groups_of(tmp_path / "out")
    assert leaders_in(table, 6).tolist() == [0, 0, 2, 2, 4, 4]


def test_rows_within_rounding_of_the_threshold_are_decided_alike_in_every_block_size(
    unit_rows: Callable[..., Rows], write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(40, 64, 5)
    rows = np.concatenate([rows, np.stack([near(row, 0.95, i) for i, row in enumerate(rows)])])
    folder = write_run(tmp_path / "run", [rows])
    dedup(folder, tmp_path / "a")
    monkeypatch.setattr(pairs, "TILE_ROWS", 3)
    monkeypatch.setattr(pairs, "TILE_COLUMNS", 5)
    dedup(folder, tmp_path / "b")
    assert (tmp_path / "a/groups.parquet").read_bytes() == (tmp_path / "b/groups.parquet").read_bytes()
    np.testing.assert_array_equal(leaders_in(groups_of(tmp_path / "a"), 80), reference(rows, 0.95))


def test_more_pairs_than_memory_holds_change_nothing(
    planted: Rows, write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", [planted])
    dedup(folder, tmp_path / "a", threshold=0.8)
    monkeypatch.setattr(pairs, "FIRST_KEPT", 2)
    monkeypatch.setattr(pairs.Pairs, "bounded", lambda self, compare: pairs.shorten(self.distinct(), compare))
    dedup(folder, tmp_path / "b", threshold=0.8)
    assert (tmp_path / "a/groups.parquet").read_bytes() == (tmp_path / "b/groups.parquet").read_bytes()
    np.testing.assert_array_equal(leaders_in(groups_of(tmp_path / "b"), len(planted)), reference(planted, 0.8))


@pytest.mark.parametrize(("keep_by", "kept"), [("order", 0), ("size", 2), ("score", 1), ("-score", 3)])
def test_the_kept_one_is_the_best_by_what_was_asked(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], keep_by: str, kept: int
) -> None:
    folder = write_run(tmp_path / "run", [np.repeat(unit_rows(1), 4, axis=0)])
    about = {"width": [1, 2, 9, 3], "height": [1, 1, 1, 1], "score": [2.0, 7.0, None, 1.0]}
    pd.DataFrame(about).to_parquet(folder / "metadata/metadata_0.parquet")
    dedup(folder, tmp_path / "out", keep_by=keep_by)
    table = groups_of(tmp_path / "out")
    assert table[table.kept]["id"].tolist() == [kept]
    assert (tmp_path / "out/ids.txt").read_text() == f"{kept}\n"


def test_pictures_are_measured_where_no_columns_tell_their_sizes(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    paths = [str(tmp_path / f"{side}.png") for side in (8, 32, 16)]
    for path, side in zip(paths, (8, 32, 16), strict=True):
        Image.new("RGB", (side, side)).save(path)
    folder = write_run(tmp_path / "run", [np.repeat(unit_rows(1), 4, axis=0)])
    pd.DataFrame({"image_path": [*paths, "nowhere.png"]}).to_parquet(folder / "metadata/metadata_0.parquet")
    dedup(folder, tmp_path / "out", keep_by="size")
    assert (tmp_path / "out/ids.txt").read_text() == "1\n"
    page = (tmp_path / "out/index.html").read_text()
    assert "1 of 4 rows are kept, by size. Duplicates by exact, semantic, cosine from 0.95: 3 embedding." in page
    assert '<div class="missing">picture cannot be read</div>' in page
    assert ">[Errno" not in page


def test_rows_without_an_embedding_are_kept(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    rows = np.concatenate([np.zeros((3, 16), np.float32), unit_rows(2)])
    found = dedup(write_run(tmp_path / "run", [rows]), tmp_path / "out")
    assert (found.rows, found.compared, found.kept) == (5, 2, 5)


@pytest.mark.parametrize("dim", [1, 2, 16])
def test_folders_of_few_rows_or_few_numbers_are_compared(write_run: WriteRun, tmp_path: Path, dim: int) -> None:
    rows = np.zeros((4, dim), np.float32)
    found = dedup(write_run(tmp_path / "empty", [rows]), tmp_path / "none")
    assert (found.compared, found.kept) == (0, 4)
    rows[1] = 1
    assert dedup(write_run(tmp_path / "one", [rows]), tmp_path / "single").compared == 1
    rows[3] = 2
    found = dedup(write_run(tmp_path / "two", [rows]), tmp_path / "pair", blocks=2, exact=False)
    assert (found.compared, found.reasons) == (2, {"semantic": 1})


def test_rows_whose_squares_are_too_large_or_too_small_are_rows_too(write_run: WriteRun, tmp_path: Path) -> None:
    rows = np.zeros((5, 8), np.float32)
    rows[0] = rows[1] = 1e25
    rows[2] = rows[3] = 1e-25
    found = dedup(write_run(tmp_path / "run", [rows]), tmp_path / "out", by="exact")
    assert (found.compared, found.reasons) == (4, {"embedding": 2})


def test_the_same_bytes_are_told_by_a_column_and_by_the_pictures(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], make_jpeg: Callable[[int], bytes]
) -> None:
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        path.write_bytes(make_jpeg(seed))
    folder = write_run(tmp_path / "run", [np.repeat(unit_rows(1), 3, axis=0)])
    pd.DataFrame({"image_path": [str(path) for path in paths]}).to_parquet(folder / "metadata/metadata_0.parquet")
    assert dedup(folder, tmp_path / "by_pictures").reasons == {"bytes": 1, "embedding": 1}
    table = groups_of(tmp_path / "by_pictures")
    assert table.image_path.tolist() == [str(path) for path in paths]
    other = write_run(tmp_path / "other", [unit_rows(3)])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    pd.DataFrame({"sha256": digests}).to_parquet(other / "metadata/metadata_0.parquet")
    assert dedup(other, tmp_path / "by_column", by="exact").reasons == {"bytes": 1}


def test_perceptual_duplicates_are_found_though_their_embeddings_differ(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((96, 96)) for _ in range(3)]
    pictures[1].save(tmp_path / "0.png")
    pictures[1].resize((80, 80)).save(tmp_path / "1.jpg", quality=80)
    pictures[2].save(tmp_path / "2.png")
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    paths = [str(tmp_path / name) for name in ("0.png", "1.jpg", "2.png", "3.jpg")]
    folder = write_run(tmp_path / "run", [unit_rows(4)])
    pd.DataFrame({"image_path": paths}).to_parquet(folder / "metadata/metadata_0.parquet")
    found = dedup(folder, tmp_path / "out", by="perceptual,semantic")
    assert (found.reasons, found.unread) == ({"perceptual": 1}, 1)
    assert leaders_in(groups_of(tmp_path / "out"), 4).tolist() == [0, 0, 2, 3]


def test_pictures_that_cannot_be_read_are_counted_and_compare_nothing(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(4)])
    with pytest.raises(ClipRetrievalError, match=r"no picture of .* could be read"):
        dedup(folder, tmp_path / "out", by="perceptual")
    done = CliRunner().invoke(cli, ["dedup", str(folder), str(tmp_path / "out"), "--by", "perceptual,exact"])
    assert done.exit_code == 0, done.output
    assert "4 rows without a readable picture" in done.output


def test_reasons_are_those_that_were_asked_for_within_a_folder_and_across_two(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], make_jpeg: Callable[[int], bytes]
) -> None:
    paths = [tmp_path / f"{name}.jpg" for name in "ab"]
    for path in paths:
        path.write_bytes(make_jpeg(1))
    folders = []
    for number, path in enumerate(paths):
        folders.append(write_run(tmp_path / f"run{number}", [np.concatenate([unit_rows(1), unit_rows(1, seed=7)])]))
        pd.DataFrame({"image_path": [str(path), None]}).to_parquet(folders[-1] / "metadata/metadata_0.parquet")
    found = dedup(folders[0], tmp_path / "across", against=str(folders[1]))
    assert found.reasons == {"bytes": 1, "embedding": 1}
    found = dedup(folders[0], tmp_path / "semantic", against=str(folders[1]), by="semantic")
    assert found.reasons == {"semantic": 2}
    found = dedup(folders[0], tmp_path / "perceptual", against=str(folders[1]), by="perceptual")
    assert found.reasons == {"perceptual": 1}


def test_leaks_are_found_against_another_folder_and_not_within(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    rows = unit_rows(50)
    train = write_run(tmp_path / "train", [np.concatenate([rows, rows[:5], rows[10:12]])])
    test = np.stack([rows[3], near(rows[20], 0.97, 1), near(rows[30], 0.9, 2), *unit_rows(5, seed=9)])
    other = write_run(tmp_path / "test", [np.concatenate([test, test])])
    dedup(train, tmp_path / "out", against=str(other))
    table = groups_of(tmp_path / "out")
    leaks = table[~table.kept]
    assert sorted(leaks["id"]) == [3, 20, 53]
    assert not leaks.in_other.any()
    assert table[table.kept].in_other.all()
    assert set(table[table.kept]["id"]) == {0, 1}
    assert len((tmp_path / "out/ids.txt").read_text().split()) == 54


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(
    planted: Rows, write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "BATCH_PRODUCTS", 10_000)
    folder = write_run(tmp_path / "run", [planted])
    dedup(folder, tmp_path / "whole", blocks=12)
    compared: list[int] = []
    real_run, real_keep = pairs.run, Workspace.keep

    def stop_at_third(work: Workspace, name: str, make: Callable[[], Any]) -> Any:
        if name == "pairs_3":
            raise KeyboardInterrupt
        return real_keep(work, name, make)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "keep", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            dedup(folder, tmp_path / "out", blocks=12)
    assert (tmp_path / "out" / WORK_FOLDER / "pairs_2.npy").exists()
    assert not (tmp_path / "out/groups.parquet").exists()

    def counted(rows: Any, compare: Any, tasks: list[pairs.Task]) -> pairs.Pairs:
        compared.extend(task.start for task in tasks)
        return real_run(rows, compare, tasks)

    monkeypatch.setattr(pairs, "run", counted)
    dedup(folder, tmp_path / "out", blocks=12)
    assert 0 not in compared
    assert not (tmp_path / "out" / WORK_FOLDER).exists()
    for name in ("groups.parquet", "ids.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_same_command_again_leaves_a_finished_result_and_what_was_added_to_it(
    planted: Rows, write_run: WriteRun, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", [planted])
    first = dedup(folder, tmp_path / "out", write="ids,embeddings")
    (tmp_path / "out/embeddings/columns").mkdir()
    before = times_of(tmp_path / "out")
    again = dedup(folder, tmp_path / "out", write="ids,embeddings", max_memory="3G")
    assert (first.is_new, again.is_new) == (True, False)
    assert replace(again, is_new=True) == first
    assert times_of(tmp_path / "out") == before
    (tmp_path / "out/ids.txt").unlink()
    with pytest.raises(ClipRetrievalError, match=r"whose ids\.txt is gone; .* give --overwrite"):
        dedup(folder, tmp_path / "out", write="ids,embeddings")


def test_a_result_of_rows_that_have_changed_is_not_taken_for_theirs(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    dedup(folder, tmp_path / "out")
    np.save(folder / "img_emb/img_emb_0.npy", np.repeat(unit_rows(10, seed=8), 2, axis=0))
    with pytest.raises(ClipRetrievalError, match=r"before its input changed; .* give --overwrite"):
        dedup(folder, tmp_path / "out")
    assert dedup(folder, tmp_path / "out", overwrite=True).duplicates == 10


def test_other_options_replace_a_result_only_where_that_is_asked_for(
    planted: Rows, write_run: WriteRun, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", [planted])
    first = dedup(folder, tmp_path / "out", threshold=0.99, write="ids,parquet,embeddings")
    before = times_of(tmp_path / "out")
    with pytest.raises(
        ClipRetrievalError,
        match=r"threshold: 0\.99 there, 0\.9 now; write: ids,parquet,embeddings there, ids now\); .* give --overwrite",
    ):
        dedup(folder, tmp_path / "out", threshold=0.9)
    assert times_of(tmp_path / "out") == before
    second = dedup(folder, tmp_path / "out", threshold=0.9, overwrite=True)
    assert second.duplicates > first.duplicates
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "groups.parquet", "ids.txt", "index.html", "recipe.json",
    }  # fmt: skip
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert recipe["options"]["threshold"] == 0.9
    assert recipe["outcome"]["duplicates"] == second.duplicates


def test_an_embeddings_folder_of_the_kept_rows_has_no_duplicate_left(
    planted: Rows, write_run: WriteRun, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", [planted[:700], planted[700:]], [planted[:700], planted[700:]])
    found = dedup(folder, tmp_path / "out", write="ids,parquet,embeddings")
    kept = [int(line) for line in (tmp_path / "out/ids.txt").read_text().split()]
    assert len(kept) == found.kept
    table = pd.read_parquet(tmp_path / "out/kept.parquet")
    assert table["id"].tolist() == kept
    assert table["caption"].tolist() == [f"row {row}" for row in kept]
    again = dedup(tmp_path / "out/embeddings", tmp_path / "again")
    assert (again.rows, again.duplicates) == (found.kept, 0)
    texts = np.load(next((tmp_path / "out/embeddings/text_emb").glob("*.npy")))
    np.testing.assert_array_equal(texts, planted[kept])


def test_the_page_shows_groups_with_the_kept_one_first(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    folder = write_run(tmp_path / "run", [np.repeat(unit_rows(2), 3, axis=0)], label="<b>")
    dedup(folder, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "4 duplicates in 2 groups" in page
    assert page.index("<b>kept</b> &lt;b&gt; 0") < page.index("<b>embedding</b> <span>1.000</span> &lt;b&gt; 1")


def test_a_match_of_hashes_alone_makes_no_duplicate(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_retrieval.curate.scan.xxhash.xxh3_64_intdigest", lambda _row: 7)
    found = dedup(write_run(tmp_path / "run", [unit_rows(20)]), tmp_path / "out")
    assert found.duplicates == 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "threshold": ({"threshold": 1.5}, "threshold is a cosine above 0 and up to 1"),
    "nan": ({"threshold": float("nan")}, "threshold is a cosine"),
    "memory": ({"max_memory": "1k"}, "max_memory 1k is too little for 20 rows; give 4800B or more"),
    "size": ({"keep_by": "size"}, "--keep_by size needs pictures, or columns width and height"),
    "column": ({"keep_by": "beauty"}, "--keep_by beauty: .* has no such column; it has caption"),
    "kind": ({"keep_by": "caption"}, "--keep_by caption: the column holds text, not numbers"),
    "texts": ({"modality": "text"}, "holds no text embeddings; it has image embeddings: --modality image"),
    "itself": ({"against": "SELF"}, "--against names the folder itself"),
    "absent": ({"against": "nowhere"}, "nowhere is not there"),
    "datacomp": ({"write": "datacomp"}, "has no such column"),
    "webdataset": ({"write": "webdataset"}, "needs pictures"),
    "bits": ({"max_bits": 30}, "max_bits is at most 16"),
    "hashes": ({"by": "perceptual", "modality": "text"}, "captions have no such hash"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_told_in_a_sentence_before_any_work(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], name: str
) -> None:
    options, message = BAD[name]
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    given = {key: str(folder) if value == "SELF" else value for key, value in options.items()}
    with pytest.raises(ClipRetrievalError, match=message):
        dedup(folder, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_another_dimension_and_another_model_are_refused(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    other = write_run(tmp_path / "other", [unit_rows(20, 8)])
    with pytest.raises(ClipRetrievalError, match="has 8 dimensions"):
        dedup(folder, tmp_path / "out", against=str(other))
    third = write_run(tmp_path / "third", [unit_rows(20)])
    (third / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": {"fingerprint": "x"}}))
    with pytest.raises(ClipRetrievalError, match="another model"):
        dedup(folder, tmp_path / "out", against=str(third))


def test_foreign_folders_are_left_alone(write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    with pytest.raises(ClipRetrievalError, match="holds embeddings or an index"):
        dedup(folder, folder)
    (tmp_path / "hits").mkdir()
    (tmp_path / "hits/recipe.json").write_text("{}")
    with pytest.raises(ClipRetrievalError, match="the result of another command"):
        dedup(folder, tmp_path / "hits")


@pytest.mark.parametrize(
    "name",
    [
        "embeddings/mine.txt",
        "ids.txt",
        "groups.parquet",
        "webdataset/00000.tar",
        "_work/mine.txt",
        "index.html",
        "a.jpg",
    ],
)
def test_a_folder_of_files_that_are_not_ours_is_left_as_it_is(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], name: str
) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for given in ({}, {"overwrite": True}):
        with pytest.raises(
            ClipRetrievalError, match=rf"has {name.partition('/')[0]}, which no dedup wrote; name another"
        ):
            dedup(write_run(tmp_path / "run", [unit_rows(20)]), tmp_path / "out", **given)
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]


@pytest.mark.parametrize("name", ["embeddings/mine.txt", "embeddings/columns/mine.parquet", "embeddings/img_emb/a.npy"])
def test_a_file_of_others_in_a_folder_that_is_replaced_is_told_and_stays(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], name: str
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    dedup(folder, tmp_path / "out", write="embeddings")
    mine = tmp_path / "out" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ClipRetrievalError, match=f"out has {name}, which no dedup wrote, in what would be replaced"):
        dedup(folder, tmp_path / "out", write="embeddings", threshold=0.5, overwrite=True)
    assert mine.read_text() == "mine"
    assert (tmp_path / "out/embeddings/metadata/metadata_0.parquet").exists()
    mine.unlink()
    (tmp_path / "out/embeddings/columns/odd").mkdir(parents=True)
    (tmp_path / "out/embeddings/columns/odd/odd_0.parquet").write_text("of label")
    dedup(folder, tmp_path / "out", write="embeddings", threshold=0.5, overwrite=True)
    assert not (tmp_path / "out/embeddings/columns").exists()


def test_a_form_that_this_command_did_not_write_is_not_replaced(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    dedup(folder, tmp_path / "out")
    mine = write_run(tmp_path / "out/embeddings", [unit_rows(3)])
    with pytest.raises(ClipRetrievalError, match="has embeddings/, which no dedup wrote"):
        dedup(folder, tmp_path / "out", write="embeddings", overwrite=True)
    dedup(folder, tmp_path / "out", threshold=0.5, overwrite=True)
    assert len(np.load(mine / "img_emb/img_emb_0.npy")) == 3


@pytest.mark.parametrize("name", ["columns", "img_emb", "new/deep"])
def test_a_result_within_what_is_read_is_refused(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], name: str
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(20)])
    before = sorted(folder.rglob("*"))
    with pytest.raises(ClipRetrievalError, match=r"is in .*run, which is read; name another output folder"):
        dedup(folder, folder / name)
    assert sorted(folder.rglob("*")) == before


def test_a_result_is_not_replaced_by_what_is_read_out_of_it(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    dedup(write_run(tmp_path / "run", [unit_rows(20)]), tmp_path / "out", write="embeddings")
    for name in ("recipe.json", "groups.parquet"):
        with pytest.raises(ClipRetrievalError, match="out/embeddings is read, and is in the output folder"):
            dedup(tmp_path / "out/embeddings", tmp_path / "out", overwrite=True)
        (tmp_path / "out" / name).unlink()
    tars = write_run(tmp_path / "tars", [unit_rows(2)])
    shard = str(tmp_path / "other/webdataset/00000.tar")
    pd.DataFrame({"image_path": ["a", "b"], "shard": [shard, shard]}).to_parquet(tars / "metadata/metadata_0.parquet")
    with pytest.raises(ClipRetrievalError, match="tar is read, and is in the output folder"):
        dedup(tars, tmp_path / "other")


def test_numbers_that_are_not_finite_are_named(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    rows = unit_rows(20)
    rows[7, 3] = np.nan
    with pytest.raises(ClipRetrievalError, match="row 7 of the embeddings is not finite"):
        dedup(write_run(tmp_path / "run", [rows]), tmp_path / "out")


def test_the_command_prints_json(write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]) -> None:
    folder = write_run(tmp_path / "run", [np.repeat(unit_rows(4), 2, axis=0)])
    done = CliRunner().invoke(cli, ["dedup", str(folder), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["duplicates"] == 4


def test_folders_on_a_store_are_read_and_written(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    rows = np.repeat(unit_rows(4), 2, axis=0)
    folder = write_run(tmp_path / "run", [rows], [rows])
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/dedup-run", recursive=True)
    found = dedup("memory://dedup-run", "memory://dedup-out", write="ids,embeddings")  # type: ignore[arg-type]
    assert found.duplicates == 4
    assert store.cat_file("/dedup-out/ids.txt") == b"0\n2\n4\n6\n"
    assert sorted(Path(name).name for name in store.ls("/dedup-out", detail=False)) == [
        "embeddings", "groups.parquet", "ids.txt", "index.html", "recipe.json",
    ]  # fmt: skip


def test_a_run_is_not_gone_on_with_after_the_embeddings_changed(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", [np.repeat(unit_rows(10), 2, axis=0)])
    with monkeypatch.context() as patch:
        patch.setattr("clip_retrieval.curate.dedup.cover", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dedup(folder, tmp_path / "out")
    np.save(folder / "img_emb/img_emb_0.npy", unit_rows(20, seed=8))
    with pytest.raises(ClipRetrievalError, match="of a stopped run with other options, or of rows that have changed"):
        dedup(folder, tmp_path / "out")
    assert dedup(folder, tmp_path / "out", overwrite=True).duplicates == 0
