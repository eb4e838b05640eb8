"""`index --update`: ids stay, the index is what a new build gives, and a kill at any step changes nothing of it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.cli import cli
from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.build import BuiltIndices
from clip_retrieval.index.building.edit_rows import CannotChangeError
from clip_retrieval.index.folder.checks import read_encoder
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.update import compare, update_index, warn_of_loss
from clip_retrieval.layout import EmbeddingsFolder, IndexFolder
from clip_retrieval.search.index import open_index
from clip_retrieval.search.settings import parse_settings, settings_of

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
RunUntil = Callable[[int | None, Callable[[], object]], list[str]]
Snapshot = dict[str, bytes]
EMPTIED, FILLED, STILL_EMPTY = [1, 5], [4, 30], [7]
COUNT, NEW, DIM = 40, 6, 16


def index(emb: Path, ix: Path, **options: Any) -> BuiltIndices:
    return clip_index(str(emb), str(ix), **({"engine": "faiss", "nb_cores": 1} | options))


def search(ix: Path, query: NDArray[np.float32], k: int = 5) -> list[int]:
    found: list[int] = open_index(IndexFolder(str(ix)), "image").search(query, k).ids.tolist()
    return found


def files_of(folder: Path) -> Snapshot:
    """Return what a folder holds, without what a clock decides or the history of training."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("image.json", "text.json", "manifest.json"):
        if name in found:
            value = json.loads(found[name])
            for part in [value, *value.get("indices", {}).values()]:
                for key in ("avg_search_speed_ms", "99p_search_speed_ms", "trained_rows", "quality", "index_path"):
                    part.pop(key, None)
            found[name] = json.dumps(value, sort_keys=True).encode()
    return found


def write_later(emb: Path, rows: NDArray[np.float32], label: str = "row") -> None:
    """Change an embeddings folder as `inference --update` does: rows emptied and filled, and a partition appended."""
    for number, start in ((0, 0), (1, 20)):
        np.save(emb / "img_emb" / f"img_emb_{number}.npy", rows[start : start + 20].astype(np.float16))
    np.save(emb / "img_emb" / "img_emb_1_0001.npy", rows[COUNT:].astype(np.float16))
    captions = [f"{label} {row}" for row in range(COUNT, COUNT + NEW)]
    pd.DataFrame({"caption": captions}).to_parquet(emb / "metadata" / "metadata_1_0001.parquet")


@pytest.fixture
def rows(unit_rows: Rows) -> NDArray[np.float32]:
    """Give the rows after the change."""
    later = unit_rows(COUNT + NEW, DIM)
    later[[*EMPTIED, *STILL_EMPTY, COUNT + 1]] = 0
    return later


@pytest.fixture
def emb(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> Path:
    """Give an embeddings folder of two partitions, before the change."""
    before = unit_rows(COUNT + NEW, DIM)[:COUNT]
    before[[*FILLED, *STILL_EMPTY]] = 0
    return write_run(tmp_path / "emb", np.split(before.astype(np.float16), 2))


@pytest.mark.parametrize("engine", ["faiss", "autofaiss"])
def test_an_exact_index_becomes_that_of_a_new_build(
    emb: Path, rows: NDArray[np.float32], tmp_path: Path, engine: str
) -> None:
    index(emb, tmp_path / "ix", engine=engine)
    write_later(emb, rows)
    done = index(emb, tmp_path / "ix", engine=engine, update=True)
    index(emb, tmp_path / "fresh", engine=engine)
    assert done.to_json()["changes"] == {"image": {"added": NEW, "emptied": 2, "filled": 2}}
    updated, fresh = files_of(tmp_path / "ix"), files_of(tmp_path / "fresh")
    assert updated.keys() == fresh.keys()
    assert [name for name in fresh if updated[name] != fresh[name] and name != "image.json"] == []
    about = json.loads(updated["image.json"])
    assert (about["nb vectors"], about["size in bytes"]) == (COUNT + NEW, len(updated["image.index"]))
    assert np.load(tmp_path / "ix" / "image.empty.npy").tolist() == [1, 5, 7, COUNT + 1]
    assert [search(tmp_path / "ix", rows[row], 1) for row in (4, 30, COUNT)] == [[4], [30], [COUNT]]


def test_a_graph_grows_and_is_built_again_only_for_rows_that_were_empty(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(1240, DIM)
    before, after = rows[:1200].copy(), rows[:1200].copy()
    before[[2, 3]] = after[[2, 3, 9]] = 0
    emb = write_run(tmp_path / "emb", [before])
    assert "HNSW" in index(emb, tmp_path / "ix", engine="autofaiss").infos["image"]["index_key"]
    write_run(emb, [after, rows[1200:]])
    index(emb, tmp_path / "ix", engine="autofaiss", update=True)
    assert "anew" not in caplog.text
    assert search(tmp_path / "ix", rows[1210], 1) == [1210]
    assert not {2, 3, 9} & set(search(tmp_path / "ix", rows[9], 1237))

    after[3] = rows[3]
    write_run(emb, [after, rows[1200:]])
    index(emb, tmp_path / "ix", update=True)  # by faiss: autofaiss measures a graph for seconds
    assert "cannot insert them in their place" in caplog.text
    assert search(tmp_path / "ix", rows[3], 1) == [3]


def test_plain_faiss_searches_a_built_and_an_updated_file_as_filter_does(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    rows = unit_rows(1500, 32)
    for count in (1000, 1500):
        emb = write_run(tmp_path / "emb", [rows[:1000], rows[1000:count]] if count > 1000 else [rows[:1000]])
        index(emb, tmp_path / "ix", index_key="IVF16,SQ8", update=count > 1000, nb_cores=1)
        settings = parse_settings(json.loads((tmp_path / "ix" / "image.json").read_text())["index_param"])
        stored = settings_of(faiss.read_index(str(tmp_path / "ix" / "image.index")))
        assert settings["nprobe"] > 1
        assert {name: stored[name] for name in settings} == dict(settings)


def test_lists_keep_their_recall(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    rows = unit_rows(1500, 32)
    emb = write_run(tmp_path / "emb", [rows[:1000]])
    bound = {"max_index_memory_usage": "75KB"}
    kind = index(emb, tmp_path / "ix", **bound).infos["image"]["index_key"]
    emptied = rows.copy()
    emptied[:1000:10] = 0
    write_run(emb, [emptied[:1000], emptied[1000:1400]])
    index(emb, tmp_path / "ix", max_index_memory_usage="105KB", update=True)
    index(emb, tmp_path / "fresh", max_index_memory_usage="105KB")
    queries, live = unit_rows(50, 32, 3), emptied[:1400]
    truth = np.argsort(-(queries @ live.T), axis=1)[:, :10]

    def recall(ix: Path) -> float:
        return float(
            np.mean([len({*search(ix, query, 10)} & {*ids}) / 10 for query, ids in zip(queries, truth, strict=True)])
        )

    assert "Flat" not in kind
    assert recall(tmp_path / "ix") >= recall(tmp_path / "fresh") - 0.1
    assert not np.isin(search(tmp_path / "ix", rows[10], 1400), np.arange(0, 1000, 10)).any()


def test_nothing_to_do_writes_nothing_and_says_so(emb: Path, tmp_path: Path) -> None:
    index(emb, tmp_path / "ix")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ix").rglob("*")}
    for name in (emb / "img_emb").iterdir():
        os.utime(name)
    told = CliRunner().invoke(cli, ["index", str(emb), str(tmp_path / "ix"), "--update"])
    assert told.exit_code == 0, told.output
    assert "nothing to update" in told.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ix").rglob("*")} == before


def test_an_index_that_was_cut_off_is_no_index_to_update(emb: Path, tmp_path: Path) -> None:
    index(emb, tmp_path / "ix")
    whole = (tmp_path / "ix" / "image.index").read_bytes()
    (tmp_path / "ix" / "image.index").write_bytes(whole[:300])
    with pytest.raises(IndexBuildError, match=r"image.index has 300 bytes, and had [\d,]+ when it was built"):
        index(emb, tmp_path / "ix", update=True)


def test_the_command_line_says_what_was_done(emb: Path, rows: NDArray[np.float32], tmp_path: Path) -> None:
    index(emb, tmp_path / "ix")
    write_later(emb, rows)
    told = CliRunner().invoke(cli, ["index", str(emb), str(tmp_path / "ix"), "--update", "True"])
    assert "image: 6 rows added, 2 emptied, 2 filled" in told.output


def test_rows_that_are_emptied_under_the_old_time_and_size_are_found(emb: Path, tmp_path: Path) -> None:
    index(emb, tmp_path / "ix")
    path = emb / "img_emb" / "img_emb_0.npy"
    was, vectors = path.stat(), np.load(path)
    query = vectors[3].astype(np.float32)
    vectors[3] = 0
    np.save(path, vectors)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    index(emb, tmp_path / "ix", update=True)
    assert 3 not in search(tmp_path / "ix", query, COUNT)


def test_metadata_that_changed_alone_is_taken_over(emb: Path, tmp_path: Path) -> None:
    index(emb, tmp_path / "ix")
    was = (tmp_path / "ix" / "image.index").stat().st_mtime_ns
    pd.DataFrame({"caption": ["renamed"] * 20}).to_parquet(emb / "metadata" / "metadata_1.parquet")
    index(emb, tmp_path / "ix", update=True)
    assert set(pd.read_parquet(tmp_path / "ix" / "metadata" / "metadata_1.parquet").caption) == {"renamed"}
    assert (tmp_path / "ix" / "image.index").stat().st_mtime_ns == was


def test_an_update_without_an_index_builds_one(emb: Path, tmp_path: Path) -> None:
    index(emb, tmp_path / "ix", update=True)
    index(emb, tmp_path / "fresh")
    assert files_of(tmp_path / "ix") == files_of(tmp_path / "fresh")


def test_captions_that_came_and_went_have_an_index_and_none(
    emb: Path, tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    images = [np.load(path) for path in sorted((emb / "img_emb").iterdir())]
    index(emb, tmp_path / "ix")
    write_run(emb, images, [unit_rows(20), unit_rows(20)])
    index(emb, tmp_path / "ix", update=True)
    assert (tmp_path / "ix" / "text.index").exists()
    write_run(emb, images, [np.zeros((20, DIM), np.float16)] * 2)
    index(emb, tmp_path / "ix", update=True)
    assert [path.name for path in (tmp_path / "ix").glob("text*")] == []
    shutil.rmtree(emb / "img_emb")
    with pytest.raises(IndexBuildError, match=r"every embedding in .* is zero"):
        index(emb, tmp_path / "ix", update=True)


def grow(emb: Path) -> None:
    np.save(emb / "img_emb" / "img_emb_1.npy", np.load(emb / "img_emb" / "img_emb_1.npy")[:19])
    pd.DataFrame({"caption": ["x"] * 19}).to_parquet(emb / "metadata" / "metadata_1.parquet")


def vanish(emb: Path) -> None:
    (emb / "img_emb" / "img_emb_1.npy").unlink()
    (emb / "metadata" / "metadata_1.parquet").unlink()


def come_before(emb: Path) -> None:
    for name in ("img_emb/img_emb_0{}.npy", "metadata/metadata_0{}.parquet"):
        shutil.copy(emb / name.format(""), emb / name.format("_0001"))


def replace_row(emb: Path) -> None:
    vectors = np.load(emb / "img_emb" / "img_emb_1.npy")
    np.save(emb / "img_emb" / "img_emb_1.npy", vectors[::-1].copy())


def replace_one_row(emb: Path) -> None:
    vectors = np.load(emb / "img_emb" / "img_emb_1.npy")
    vectors[3] *= -1
    np.save(emb / "img_emb" / "img_emb_1.npy", vectors)


def change_model(emb: Path) -> None:
    manifest = json.loads((emb / "manifest.json").read_text())
    manifest["encoder"]["fingerprint"] = "another"
    (emb / "manifest.json").write_text(json.dumps(manifest))


REFUSED: dict[Callable[[Path], None], str] = {
    grow: r"img_emb_1\.npy has 19 rows, and had 20",
    vanish: r"was built from .*img_emb_1\.npy \(20 rows\), which is gone",
    come_before: r"img_emb_0_0001\.npy was inserted before img_emb_1\.npy",
    replace_row: r"row \d+ of .*img_emb_1\.npy has another vector now, as have \d+ more; ",
    replace_one_row: r"row 3 of .*img_emb_1\.npy has another vector now; ",
    change_model: r"holds embeddings of hash:16\?size=32 \(hash-16-0\), the folder's are of .*another",
}


@pytest.mark.parametrize("spoil", REFUSED)
def test_another_folder_is_refused_and_the_index_stays(
    emb: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    index(emb, tmp_path / "ix")
    before = files_of(tmp_path / "ix")
    spoil(emb)
    with pytest.raises(IndexBuildError, match=REFUSED[spoil]) as refused:
        index(emb, tmp_path / "ix", update=True)
    assert "build the index again, without --update" in str(refused.value)
    assert files_of(tmp_path / "ix") == before


@pytest.mark.parametrize("missing", ["manifest.json", "image.checksums.npy", "image.json"])
def test_an_index_that_does_not_say_what_it_was_built_of_is_refused(emb: Path, tmp_path: Path, missing: str) -> None:
    index(emb, tmp_path / "ix")
    (tmp_path / "ix" / missing).unlink()
    with pytest.raises(IndexBuildError, match="build the index again, without --update"):
        index(emb, tmp_path / "ix", update=True)


def test_what_would_break_its_bound_or_outgrow_its_training_is_built_again(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = unit_rows(1800, 32)
    emb = write_run(tmp_path / "emb", [rows[:600]])
    index(emb, tmp_path / "ix", max_index_memory_usage="90KB")
    write_run(emb, [rows[:600], rows[600:1000]])
    index(emb, tmp_path / "ix", max_index_memory_usage="50KB", update=True)
    assert "bytes, above max_index_memory_usage" in caplog.text
    assert (tmp_path / "ix" / "image.index").stat().st_size <= 50_000
    caplog.clear()
    write_run(emb, [rows[:600], rows[600:1000], rows[1000:]])
    for name in ("img_emb_0.npy", "img_emb_1.npy"):
        assert (emb / "img_emb" / name).exists()
    about = json.loads((tmp_path / "ix" / "manifest.json").read_text())
    about["indices"]["image"]["trained_rows"] = 800
    (tmp_path / "ix" / "manifest.json").write_text(json.dumps(about))
    index(emb, tmp_path / "ix", max_index_memory_usage="4G", update=True)
    assert "it was trained on 800 rows, and has more than twice as many now" in caplog.text


def test_an_update_that_is_too_large_leaves_nothing_in_the_way(
    emb: Path, rows: NDArray[np.float32], tmp_path: Path
) -> None:
    index(emb, tmp_path / "ix")
    write_later(emb, rows)
    source, target = EmbeddingsFolder(str(emb)), IndexFolder(str(tmp_path / "ix"))
    vectors = open_vectors(source, "img_emb")
    assert vectors is not None
    known = compare(target, read_encoder(source), {"image": vectors}, {"image": vectors.examine()})
    assert known is not None
    with pytest.raises(CannotChangeError, match="above max_index_memory_usage"):
        update_index(
            known, "image", vectors, Bounds(max_index_bytes=1, available_bytes=10**9, cores=1), tmp_path / "image.index"
        )
    assert not (tmp_path / "image.index").exists()


@pytest.mark.parametrize("key", [None, "IVF1,PQ16x4fs"])  # arrays of codes; lists from file to file
def test_a_kill_at_any_step_leaves_the_old_index_or_the_new_one(
    emb: Path, rows: NDArray[np.float32], tmp_path: Path, run_until: RunUntil, key: str | None
) -> None:
    index(emb, tmp_path / "old", index_key=key)
    old = files_of(tmp_path / "old")
    write_later(emb, rows)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    steps = run_until(None, lambda: index(emb, tmp_path / "new", update=True))
    new = files_of(tmp_path / "new")
    assert len(steps) > 20
    for last in range(0, len(steps), 3):
        ix = shutil.copytree(tmp_path / "old", tmp_path / f"killed-{last}")
        run_until(last, lambda here=ix: index(emb, here, update=True))  # type: ignore[misc]
        assert search(ix, rows[2], 1) == [2]
        seen = {name: value for name, value in files_of(ix).items() if not name.startswith("_")}
        assert seen in (old, new), f"killed before step {last}: {steps[last]}"
        index(emb, ix, update=True)
        assert files_of(ix) == new


def test_a_killed_build_leaves_the_older_index(
    emb: Path, rows: NDArray[np.float32], tmp_path: Path, run_until: RunUntil
) -> None:
    index(emb, tmp_path / "ix")
    steps = run_until(None, lambda: index(emb, tmp_path / "other"))
    write_later(emb, rows)
    before = files_of(tmp_path / "ix")
    run_until(steps.index("move") - 1, lambda: index(emb, tmp_path / "ix"))
    assert {name: value for name, value in files_of(tmp_path / "ix").items() if not name.startswith("_")} == before
    index(emb, tmp_path / "ix", update=True)
    assert search(tmp_path / "ix", rows[COUNT], 1) == [COUNT]


def test_an_update_that_costs_recall_is_told_of(
    emb: Path, rows: NDArray[np.float32], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index(emb, tmp_path / "ix", index_key="SQ4")
    path = tmp_path / "ix" / "image.json"
    about = json.loads(path.read_text())
    about["quality"]["image"]["recall@10"] = 1.2
    path.write_text(json.dumps(about))
    write_later(emb, rows)
    index(emb, tmp_path / "ix", update=True)
    assert "the image index finds less than before its update: recall@10 is " in caplog.text
    assert "and was 1.200; build it again, without --update" in caplog.text


def test_an_index_that_was_built_anew_is_not_to_be_built_once_more(
    tmp_path: Path, unit_rows: Callable[..., NDArray[np.float32]], write_run: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    emb, path = write_run(tmp_path / "emb", [unit_rows(300, 32)]), tmp_path / "ix" / "image.json"
    about = index(emb, tmp_path / "ix").infos["image"]
    about["quality"]["image"]["recall@10"] = 1.2
    path.write_text(json.dumps(about))
    index(emb, tmp_path / "ix", update=True, max_index_memory_usage="20KB")
    assert "building the image index from scratch: it has 38," in caplog.text
    assert "and was 1.200; raise --max_index_memory_usage or --max_index_query_time_ms, if" in caplog.text


def quality_of(image: float | None, text: float | None, wanted: float | None = None) -> dict[str, Any]:
    recalls = {"image": image, "text": text}
    found = {asked: None if recall is None else {"recall@10": recall} for asked, recall in recalls.items()}
    return {"quality": {**found, "target": {"max_index_query_time_ms": 10.0, "wanted_recall": wanted}}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (quality_of(0.9, 0.9), quality_of(0.88, 0.88)),
        (quality_of(0.9, None), quality_of(0.89, 0.5)),
        (quality_of(0.99, 0.99, 0.9), quality_of(0.91, 0.9, 0.9)),
        (quality_of(0.99, 0.99, 0.9), quality_of(0.5, 0.5)),
        (quality_of(None, None), quality_of(0.5, 0.5)),
        ({}, quality_of(0.5, 0.5)),
    ],
    ids=["by chance", "new queries", "enough", "another target", "not measured", "of another program"],
)
def test_less_recall_that_says_nothing_is_not_told_of(
    before: dict[str, Any], after: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_loss("image", before, after, is_new=False)
    assert not caplog.records
    warn_of_loss("image", quality_of(0.9, 0.9), quality_of(0.9, 0.8), is_new=False)
    assert caplog.records


def test_an_index_in_an_object_store_is_updated(emb: Path, rows: NDArray[np.float32]) -> None:
    place = f"memory://updated-index-{os.getpid()}"
    clip_index(str(emb), place, engine="faiss", nb_cores=1)
    write_later(emb, rows)
    clip_index(str(emb), place, engine="faiss", nb_cores=1, update=True)
    assert open_index(IndexFolder(place), "image").search(rows[COUNT], 1).ids.tolist() == [COUNT]
    assert (
        faiss.deserialize_index(np.frombuffer(IndexFolder(place).read_bytes("image.index"), np.uint8)).ntotal
        == COUNT + NEW
    )
