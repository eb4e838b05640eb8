"""Choosing rows: conditions, quotas, diversity, and the files of a subset."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval.cli import cli
from clip_retrieval.curate import diverse, subset, threads
from clip_retrieval.curate.config import SelectConfig
from clip_retrieval.curate.select import SelectResult, places_in_group, run_select, share_out
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.run import run_inference
from clip_retrieval.options import build_config

Rows = NDArray[np.float32]
WriteRun = Callable[..., Path]


def select(folder: Path, output: Path, **options: Any) -> SelectResult:
    return run_select(build_config(SelectConfig, options, (str(folder), str(output))))


def ids_of(output: Path) -> list[int]:
    return [int(line) for line in (output / "ids.txt").read_text().split()]


@pytest.fixture
def run(write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]) -> Path:
    """Return a folder of 12 rows in two files, with columns of several kinds."""
    rows = unit_rows(12)
    folder = write_run(tmp_path / "run", [rows[:7], rows[7:]])
    about = pd.DataFrame(
        {
            "caption": [f"row {row}" for row in range(12)],
            "score": [0.1, 0.9, None, 0.5, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.0, 1.0],
            "kind": [*"aaaaaabbbb", "c", None],
            "cluster": [0, 0, 0, 1, 1, 1, 2, 2, 2, None, 3, 3],
            "uid": [f"{row:032x}" for row in range(11)] + ["none"],
        }
    )
    about[:7].to_parquet(folder / "metadata/metadata_0.parquet")
    about[7:].to_parquet(folder / "metadata/metadata_1.parquet")
    return folder


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"where": "score > 0.6"}, [1, 4, 6, 11]),
        ({"where": "score > 0.6", "count": 2}, [1, 4]),
        ({"top": "score", "count": 3}, [1, 4, 11]),
        ({"top": "-score", "count": 3}, [0, 5, 10]),
        ({"top": "score", "count": 12}, list(range(12))),
        ({"top": "score", "per_cluster": 1}, [1, 4, 6, 11]),
        ({"per_cluster": 2}, [0, 1, 3, 4, 6, 7, 10, 11]),
        ({"balance": "kind"}, [0, 6, 10, 11]),
        ({"balance": "kind", "count": 8, "top": "score"}, [1, 3, 4, 6, 8, 9, 10, 11]),
        ({"where": "kind = 'b'", "balance": "cluster"}, [6, 9]),
    ],
)
def test_the_right_rows_are_chosen(run: Path, tmp_path: Path, options: dict[str, Any], wanted: list[int]) -> None:
    found = select(run, tmp_path / "out", **options)
    assert ids_of(tmp_path / "out") == wanted
    assert (found.chosen, found.steps["chosen"]) == (len(wanted), len(wanted))


def test_a_list_of_ids_is_a_condition(run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("4\n6\n1\n")
    select(run, tmp_path / "out", ids=str(tmp_path / "kept.txt"), where="kind = 'a'")
    assert ids_of(tmp_path / "out") == [1, 4]


def test_quotas_are_even_as_far_as_there_are_rows() -> None:
    assert share_out([10, 1, 5], 9) == [4, 1, 4]
    assert share_out([3, 3, 3], 7) == [3, 2, 2]
    assert share_out([2, 9], 100) == [2, 9]
    assert share_out([4, 2, 9], None) == [2, 2, 2]
    assert places_in_group(np.array([1, 0, 1, 1, 0])).tolist() == [0, 0, 1, 2, 1]


def test_diverse_rows_are_one_of_each_clump(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    centers = unit_rows(10, seed=3)
    own = np.random.default_rng(0).integers(0, 10, 300)
    rows = centers[own] + 0.02 * unit_rows(300, seed=4)
    rows[5] = 0
    folder = write_run(tmp_path / "run", [rows])
    select(folder, tmp_path / "out", count=10, diverse=True)
    assert sorted(own[ids_of(tmp_path / "out")]) == list(range(10))


def test_diverse_rows_of_several_blocks_cover_about_as_well_as_those_of_one(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = np.array([0.4, 0.2] + [0.04] * 10)  # a row of a large clump is likely, one of a small clump is not
    own = np.random.default_rng(6).choice(12, 800, p=shares)
    rows = unit_rows(12, 8, seed=7)[own] + 0.3 * unit_rows(800, 8, seed=8)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folder = write_run(tmp_path / "run", [rows[:500], rows[500:]])

    def radius(output: Path, **options: Any) -> float:
        select(folder, output, count=80, **options)
        chosen = rows[ids_of(output)]
        assert len(chosen) == 80
        return float(1 - (rows @ chosen.T).max(axis=1).min())

    whole = radius(tmp_path / "whole", diverse=True)
    monkeypatch.setattr(diverse, "BLOCK_ROWS", 200)
    blocks, first = radius(tmp_path / "blocks", diverse=True), radius(tmp_path / "first")
    assert blocks < 1.5 * whole
    assert blocks < 0.75 * first


def test_a_stopped_choice_goes_on_with_its_blocks(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(400, 8)])
    monkeypatch.setattr(diverse, "BLOCK_ROWS", 20)
    monkeypatch.setattr(diverse, "BATCH", 2)
    select(folder, tmp_path / "whole", count=40, diverse=True)
    real = diverse.traverse
    done: list[int] = []

    def stop(rows: Rows) -> Rows:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(len(rows))
        return real(rows)

    with monkeypatch.context() as patch:
        patch.setattr(threads, "count_cores", lambda: 1)
        patch.setattr(diverse, "traverse", stop)
        with pytest.raises(KeyboardInterrupt):
            select(folder, tmp_path / "out", count=40, diverse=True)
    assert len(list((tmp_path / "out/_work").glob("far_*.npy"))) == 2
    with pytest.raises(
        ClipRetrievalError, match=r"_work holds the work of a stopped run with other options.* --overwrite"
    ):
        select(folder, tmp_path / "out", count=41, diverse=True)
    assert len(list((tmp_path / "out/_work").glob("far_*.npy"))) == 2
    select(folder, tmp_path / "out", count=40, diverse=True)
    assert ids_of(tmp_path / "out") == ids_of(tmp_path / "whole")
    select(folder, tmp_path / "out", count=41, diverse=True, overwrite=True)
    assert len(ids_of(tmp_path / "out")) == 41


def test_datacomp_and_parquet_name_the_chosen_rows(run: Path, tmp_path: Path) -> None:
    found = select(run, tmp_path / "out", where="score >= 0.9", write="datacomp,parquet")
    assert found.notes == ["1 row without a uid of 32 hexadecimal digits: not in uids.npy"]
    assert np.load(tmp_path / "out/uids.npy").tolist() == [(0, 1)]
    assert pd.read_parquet(tmp_path / "out/kept.parquet")["id"].tolist() == [1, 11]


def test_a_webdataset_has_the_samples_of_the_chosen_rows_each_shard_read_once(
    write_shards: Callable[[Path, int, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards", 3, 4)
    config = {"input_format": "webdataset", "clip_model": "hash:16?size=32", "distribution_strategy": "sequential"}
    run_inference(build_config(InferenceConfig, config, (str(shards), str(tmp_path / "run"))))
    monkeypatch.setattr(subset, "SAMPLES_PER_TAR", 3)
    select(tmp_path / "run", tmp_path / "out", where="image_path <> '00001'", count=7, write="webdataset,ids")
    tars = sorted((tmp_path / "out/webdataset").glob("*.tar"))
    members = []
    for path in tars:
        with tarfile.open(path) as tar:
            members.append([name for name in tar.getnames() if name.endswith(".jpg")])
    assert members == [["00000.jpg", "00002.jpg", "00003.jpg"], ["00004.jpg", "00005.jpg", "00006.jpg", "00007.jpg"]]


def test_rows_without_a_sample_are_listed_with_the_reason(
    write_pictures: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    photos = write_pictures(tmp_path / "photos", 4)
    config = {"clip_model": "hash:16?size=32", "distribution_strategy": "sequential"}
    run_inference(build_config(InferenceConfig, config, (str(photos), str(tmp_path / "run"))))
    gone = sorted(photos.glob("*.jpg"))[1:3]
    for path in gone:
        path.unlink()
    found = select(tmp_path / "run", tmp_path / "out", where="image_path is not null", write="webdataset")
    assert found.notes == ["2 rows without a sample in webdataset/; failures.parquet names them"]
    assert "failures.parquet" in found.files
    failed = pd.read_parquet(tmp_path / "out/failures.parquet")
    assert failed["id"].tolist() == [1, 2]
    assert failed["image_path"].tolist() == [str(path) for path in gone]
    assert all("not found" in reason or "No such file" in reason or "is gone" in reason for reason in failed["reason"])


def test_a_recipe_tells_what_was_chosen_and_how(run: Path, tmp_path: Path) -> None:
    select(run, tmp_path / "out", where="score > 0.6", top="score", count=2)
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert recipe["options"]["where"] == "score > 0.6"
    assert recipe["outcome"]["steps"] == {"rows": 12, "where": 4, "chosen": 2}
    assert recipe["outcome"]["embeddings"]["model_fingerprint"] == "hash-16-0"
    page = (tmp_path / "out/index.html").read_text()
    assert "2 of 12 rows" in page
    assert "score &gt; 0.6" in page
    assert "after --where</td>" in page
    assert ">chosen</td>" in page
    assert page.index("<b>11</b>") < page.index("<b>1</b>")  # the best first


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "nothing to choose by"),
    "order": ({"top": "score"}, "--top score only orders rows"),
    "order of all": ({"top": "score", "where": "score > 0"}, "--top score only orders rows"),
    "both orders": (
        {"diverse": True, "count": 2, "top": "score"},
        "--diverse ignores the order --top score",
    ),
    "diverse": ({"diverse": True, "where": "score > 0"}, "--diverse needs a number of rows"),
    "column": ({"top": "beauty", "count": 1}, "--top beauty: .* has no such column"),
    "kind": ({"top": "kind", "count": 1}, "not numbers"),
    "balance": ({"balance": "beauty"}, "--balance beauty: .* has no such column"),
    "cluster": ({"per_cluster": 1, "cluster_column": "x"}, "`clip-retrieval label --clusters N` makes it"),
    "where": ({"where": "beauty > 1"}, "there is no column beauty"),
    "ids": ({"ids": "nowhere.txt"}, "--ids nowhere.txt is not there"),
    "none": ({"where": "score > 5"}, r"no row of .* is left \(12 in all, 0 after --where\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_told_in_a_sentence(run: Path, tmp_path: Path, name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(ClipRetrievalError, match=message):
        select(run, tmp_path / "out", **options)
    assert not (tmp_path / "out/recipe.json").exists()


def test_ids_of_other_rows_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("3\n12\n")
    with pytest.raises(ClipRetrievalError, match="holds '12', which is not one of the 12 rows"):
        select(run, tmp_path / "out", ids=str(tmp_path / "ids.txt"))


def test_a_result_is_replaced_only_where_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("3\n4\n")
    first = select(run, tmp_path / "out", ids=str(tmp_path / "list.txt"))
    assert replace(select(run, tmp_path / "out", ids=str(tmp_path / "list.txt")), is_new=True) == first
    with pytest.raises(ClipRetrievalError, match=r"count: None there, 1 now\); .* give --overwrite"):
        select(run, tmp_path / "out", ids=str(tmp_path / "list.txt"), count=1)
    (tmp_path / "list.txt").write_text("7\n")
    with pytest.raises(ClipRetrievalError, match="before its input changed"):
        select(run, tmp_path / "out", ids=str(tmp_path / "list.txt"))
    assert ids_of(tmp_path / "out") == [3, 4]
    select(run, tmp_path / "out", ids=str(tmp_path / "list.txt"), overwrite=True)
    assert ids_of(tmp_path / "out") == [7]


def test_files_that_are_not_ours_are_left_as_they_are(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "webdataset/00000.tar"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ClipRetrievalError, match="is read, and is in the output folder"):
        select(run, tmp_path, count=3)
    run.rename(tmp_path.with_name("apart"))
    with pytest.raises(ClipRetrievalError, match="has webdataset, which no select wrote"):
        select(tmp_path.with_name("apart"), tmp_path, count=3)
    assert [path.name for path in tmp_path.iterdir()] == ["webdataset"]


def test_the_command_prints_json(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["select", str(run), str(tmp_path / "out"), "--count", "3", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["chosen"] == 3


def test_rows_whose_samples_are_gone_are_in_no_output(
    tmp_path: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        (pictures / f"{number}.jpg").write_bytes(make_jpeg(number))
    (pictures / "4.txt").write_text("the last")
    command = ["inference", "pictures", "run", "--clip_model", "hash:16?size=32", "--enable_metadata", "True"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    (pictures / "1.jpg").unlink()
    (pictures / "3.jpg").unlink()
    assert CliRunner().invoke(cli, [*command, "--update"]).exit_code == 0
    forms = ["--write", "ids,parquet,embeddings,webdataset"]
    for name in ("select", "dedup"):
        made = CliRunner().invoke(cli, [name, "run", name, *forms, *(["--count", "100"] if name == "select" else [])])
        assert made.exit_code == 0, made.output
        assert "2 empty rows, whose samples are gone: left out" in made.output
        assert ids_of(tmp_path / name) == [0, 2, 4]
        assert pd.read_parquet(f"{name}/kept.parquet")["id"].tolist() == [0, 2, 4]
        assert np.load(next(Path(name, "embeddings/img_emb").glob("*.npy"))).any(axis=1).tolist() == [True] * 3
        with tarfile.open(next(Path(name).rglob("*.tar"))) as tar:
            assert sum(member.endswith(".jpg") for member in tar.getnames()) == 3


@pytest.mark.parametrize("options", [{"where": "score > 1000"}, {"where": "nope = 1"}, {"ids": "wrong.txt"}])
def test_a_failed_choice_leaves_no_folder(
    run: Path, tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.txt").write_text("99")
    with pytest.raises(ClipRetrievalError):
        select(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--update"], ["--retry_failed"]])
def test_inference_does_not_write_into_the_folder_of_a_subset(
    run: Path, tmp_path: Path, make_jpeg: Callable[[int], bytes], more: list[str]
) -> None:
    select(run, tmp_path / "out", count=3, write="embeddings")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(make_jpeg(1))
    target = str(tmp_path / "out/embeddings")
    command = ["inference", str(tmp_path / "pictures"), target, "--clip_model", "hash:16?size=32", *more]
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 1
    assert "was not written by `inference`" in made.output
    assert "{" not in made.output


def test_rows_with_a_caption_alone_stay(write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]) -> None:
    images, texts = unit_rows(4), unit_rows(4, 8, 1)
    images[1:3] = 0
    texts[2] = 0
    folder = write_run(tmp_path / "run", [images], [texts])
    pd.DataFrame({"caption": ["a", "b", None, None]}).to_parquet(next((folder / "metadata").iterdir()))
    found = select(folder, tmp_path / "out", count=100)
    assert (ids_of(tmp_path / "out"), found.chosen) == ([0, 1, 3], 3)


@pytest.mark.parametrize("command", ["select", "dedup", "label"])
def test_a_folder_without_rows_is_named_as_one(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], command: str
) -> None:
    folder = write_run(tmp_path / "run", [unit_rows(3)[:0]])
    rest = {
        "select": [str(tmp_path / "out"), "--count", "1"],
        "dedup": [str(tmp_path / "out")],
        "label": ["--outlier"],
    }
    made = CliRunner().invoke(cli, [command, str(folder), *rest[command]])
    assert made.exit_code == 1
    assert "has no rows" in made.output
    assert "--modality" not in made.output


def test_no_tars_are_named_where_no_row_is_kept(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    own, other = (write_run(tmp_path / name, [unit_rows(3)]) for name in ("own", "other"))
    pd.DataFrame({"image_path": [*"abc"]}).to_parquet(next((own / "metadata").iterdir()))
    command = ["dedup", str(own), str(tmp_path / "out"), "--against", str(other), "--write", "ids,webdataset"]
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 0, made.output
    assert "0 of 3 rows are kept" in made.output
    assert "webdataset" not in made.output
