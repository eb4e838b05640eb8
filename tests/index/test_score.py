"""`index score`, on folders as autofaiss writes them: an index, a json file, no manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval.cli import cli
from clip_retrieval.errors import ClipRetrievalError, ConfigError, IndexBuildError, QueryError, StorageError
from clip_retrieval.index import score
from clip_retrieval.index.score import score_index
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index

Rows = NDArray[np.float32]
MakeRows = Callable[..., Rows]
WriteRun = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("one_thread")


def write_index(folder: Path, name: str, rows: Rows, param: str | None = "nprobe=1") -> Path:
    folder.mkdir(exist_ok=True)
    index = faiss.index_factory(rows.shape[1], "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(folder / f"{name}.index"))
    if param is not None:
        info = {"index_key": "IVF16,Flat", "index_param": param, "nb vectors": len(rows), "compression ratio": 0.97}
        (folder / f"{name}.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def folders(tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun) -> tuple[str, str]:
    """Give an index folder of both modalities and its embeddings."""
    images, texts = unit_rows(700), unit_rows(700, seed=1)
    write_index(write_index(tmp_path / "ix", "image", images), "text", texts)
    return str(tmp_path / "ix"), str(write_run(tmp_path / "emb", [images], [texts]))


def info_of(folder: str, modality: str = "image") -> dict[str, Any]:
    info: dict[str, Any] = json.loads((Path(folder) / f"{modality}.json").read_text())
    return info


def test_the_settings_of_the_json_file_are_measured_and_no_file_changes(folders: tuple[str, str]) -> None:
    before = {path: path.read_bytes() for path in Path(folders[0]).iterdir()}
    scores = score_index(*folders)
    assert list(scores.qualities) == ["image", "text"]
    for quality in scores.qualities.values():
        assert quality.settings["nprobe"] == 1
        assert quality.mean_recall is not None
        assert 0.05 < quality.mean_recall < 0.7
    assert {path: path.read_bytes() for path in Path(folders[0]).iterdir()} == before


def test_given_settings_are_measured(folders: tuple[str, str]) -> None:
    assert score_index(*folders, index_param="nprobe=16").qualities["image"].mean_recall == 1


def test_tuned_settings_go_into_the_json_file_beside_what_was_there(folders: tuple[str, str]) -> None:
    scores = score_index(*folders, tune=True, max_index_query_time_ms=10_000)
    info = info_of(folders[0])
    assert scores.qualities["image"].settings["nprobe"] > 8
    assert info["index_param"] == info["quality"]["index_param"]
    assert "nprobe=1" in info["index_param"]
    assert info["compression ratio"] == 0.97
    assert info["quality"]["text"]["recall@10"] > 0.9
    assert info["quality"]["curve"]
    assert info_of(folders[0], "text")["quality"]["image"]["recall@10"] > 0.9
    assert score_index(*folders).qualities["image"].settings == scores.qualities["image"].settings


def test_plain_faiss_finds_in_a_tuned_file_what_we_find(
    folders: tuple[str, str], same_hits: Callable[..., None]
) -> None:
    old = faiss.read_index(f"{folders[0]}/image.index")
    score_index(*folders, tune=True, wanted_recall=0.9, max_index_query_time_ms=10_000)
    plain, ours = faiss.read_index(f"{folders[0]}/image.index"), open_index(IndexFolder(folders[0]), "image")
    assert old.nprobe == 1
    assert plain.nprobe == ours.settings["nprobe"] > 1
    queries = np.random.default_rng(5).standard_normal((20, plain.d)).astype(np.float32)
    found = ours.search_many(queries, 10)
    same_hits(
        plain.search(queries, 10), (np.stack([hits.scores for hits in found]), np.stack([hits.ids for hits in found]))
    )


def test_a_wanted_recall_takes_fewer_lists(folders: tuple[str, str]) -> None:
    few = score_index(*folders, tune=True, wanted_recall=0.6, max_index_query_time_ms=10_000)
    assert 1 < few.qualities["image"].settings["nprobe"] < 12


def test_a_folder_without_json_file_is_measured_as_its_index_stands(
    tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun
) -> None:
    rows = unit_rows(700)
    ix = write_index(tmp_path / "ix", "image", rows, None)
    scores = score_index(str(ix), str(write_run(tmp_path / "emb", [rows])), tune=True)
    assert info_of(str(ix))["quality"]["text"] is None
    assert scores.qualities["image"].by_modality["text"] is None


def test_the_outcome_may_be_kept_in_a_file(folders: tuple[str, str], tmp_path: Path) -> None:
    scores = score_index(*folders, output=str(tmp_path / "out" / "scores.json"))
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == json.loads(json.dumps(scores.to_json()))


def test_the_command_prints_a_table(folders: tuple[str, str]) -> None:
    done = CliRunner(env={"COLUMNS": "160"}).invoke(cli, ["index", "score", *folders, "--tune", "True"])
    assert done.exit_code == 0, done.output
    for word in ("recall@k", "@1 ", "@10 ", "@100 ", "256 image", "256 text", "nprobe=", "image.json and text.json"):
        assert word in done.output


def test_a_build_prints_and_stores_how_good_it_is(folders: tuple[str, str], tmp_path: Path) -> None:
    command = ["index", folders[1], str(tmp_path / "built"), "--engine", "faiss", "--wanted_recall", "0.9"]
    done = CliRunner(env={"COLUMNS": "160"}).invoke(cli, command)
    assert done.exit_code == 0, done.output
    for word in ("recall@k", "@1 ", "@10 ", "@100 ", "256 image", "256 text"):
        assert word in done.output
    assert info_of(str(tmp_path / "built"))["quality"]["target"]["wanted_recall"] == 0.9


def test_the_command_prints_json(folders: tuple[str, str]) -> None:
    done = CliRunner().invoke(cli, ["index", "score", *folders, "--json"])
    printed = json.loads(done.output)
    assert printed["tuned"] is False
    assert printed["indices"]["image"]["quality"]["text"]["queries"] == 256


def test_embeddings_of_another_run_are_refused(
    folders: tuple[str, str], tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun
) -> None:
    more = write_run(tmp_path / "more", [unit_rows(701)], [unit_rows(701)])
    with pytest.raises(IndexBuildError, match=r"image.index holds 700 vectors, .*img_emb 701 rows"):
        score_index(folders[0], str(more))
    fewer = write_run(tmp_path / "fewer", [unit_rows(699)], [unit_rows(699)])
    with pytest.raises(IndexBuildError, match="holds 700 vectors"):
        score_index(folders[0], str(fewer))
    wider = write_run(tmp_path / "wider", [unit_rows(700, 32)], [unit_rows(700, 32)])
    with pytest.raises(IndexBuildError, match=r"has 16 dimensions, .* has 32"):
        score_index(folders[0], str(wider))
    other = write_run(tmp_path / "other", [], [unit_rows(700)])
    with pytest.raises(IndexBuildError, match="no image embeddings"):
        score_index(folders[0], str(other))


def test_rows_without_embedding_may_be_missing_in_an_index(
    tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun
) -> None:
    rows = unit_rows(700)
    rows[[5, 90]] = 0
    kept = np.setdiff1d(np.arange(700), [5, 90])
    index = faiss.index_factory(16, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows[kept])
    index.add_with_ids(rows[kept], kept)
    (tmp_path / "ix").mkdir()
    faiss.write_index(index, str(tmp_path / "ix" / "image.index"))
    emb = write_run(tmp_path / "emb", [rows])
    scores = score_index(str(tmp_path / "ix"), str(emb), index_param="nprobe=16")
    assert scores.qualities["image"].mean_recall == 1


def test_what_is_not_there_is_said(folders: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(IndexBuildError, match="there is no folder"):
        score_index(str(tmp_path / "nowhere"), folders[1])
    with pytest.raises(IndexBuildError, match="there is no folder"):
        score_index(folders[0], str(tmp_path / "nowhere"))
    with pytest.raises(QueryError, match=r"neither image.index nor text.index"):
        score_index(folders[1], folders[1])
    (Path(folders[0]) / "image.index").write_bytes(b"torn")
    with pytest.raises(StorageError, match="cannot be read as a faiss index"):
        score_index(*folders)


@pytest.mark.parametrize(
    "options",
    [
        {"tune": True, "index_param": "nprobe=1"},
        {"wanted_recall": 0.9},
        {"tune": True, "wanted_recall": 95},
        {"tune": True, "max_index_query_time_ms": 0},
        {"output": "somewhere/"},
        {"index_param": "nprobe"},
        {"index_param": "lists=3"},
    ],
)
def test_options_that_mean_nothing_are_refused(folders: tuple[str, str], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        score_index(*folders, **options)


def test_settings_that_would_change_nothing_are_refused(folders: tuple[str, str]) -> None:
    with pytest.raises(QueryError, match=r"no search setting k_factor_rf; it has .*nprobe"):
        score_index(*folders, index_param="nprobe=3,k_factor_rf=4")


def test_tuning_looks_for_room_before_it_measures(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=1000))
    monkeypatch.setattr(score, "score_one", None)
    before = info_of(folders[0])
    with pytest.raises(StorageError, match=r"copies of the index files: .* kB, but 1\.0 kB are free in .*; make room"):
        score_index(*folders, tune=True)
    assert info_of(folders[0]) == before


def test_a_failure_writes_nothing(folders: tuple[str, str]) -> None:
    (Path(folders[0]) / "text.index").write_bytes(b"torn")
    before = info_of(folders[0])
    with pytest.raises(ClipRetrievalError):
        score_index(*folders, tune=True)
    assert info_of(folders[0]) == before


def test_files_that_were_built_apart_are_measured_under_their_own_rows(
    tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun
) -> None:
    rows = unit_rows(700)
    (tmp_path / "ix" / "image.index").mkdir(parents=True)
    for i, some in enumerate(np.split(rows, [300])):
        write_index(tmp_path / "ix" / "image.index", str(i), some, param=None)
    (tmp_path / "ix" / "image.json").write_text(json.dumps({"index_param": "nprobe=16"}))
    scores = score_index(str(tmp_path / "ix"), str(write_run(tmp_path / "emb", [rows])))
    assert scores.qualities["image"].to_json()["image"]["recall@10"] == 1
