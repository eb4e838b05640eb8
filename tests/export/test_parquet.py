"""`export --to parquet` as a whole: stopped and gone on, checked, refused; the other engines are in tests/clusters."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clip_retrieval.cli import cli
from clip_retrieval.errors import ConfigError, ExportError, SourceError
from clip_retrieval.export.check import Sample, Scan
from clip_retrieval.export.config import Engine, ExportConfig, RowsConfig
from clip_retrieval.export.opening import open_source
from clip_retrieval.export.run import Steps, load, run_export
from clip_retrieval.export.target import open_target

WriteTyped = Callable[..., Path]


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.fixture
def embeddings(tmp_path: Path, write_typed: WriteTyped) -> Path:
    return write_typed(tmp_path / "embeddings")


def configured(embeddings: Path, **options: Any) -> ExportConfig:
    target = str(embeddings.parent / "out")
    return ExportConfig(folder=str(embeddings), to="parquet", **{"target": target, "batch_size": 64, **options})


def stop_after(config: ExportConfig, batches: int) -> None:
    """Export as `run_export` does, and stop when so many batches are written."""

    def advance(count: float) -> None:
        nonlocal batches
        del count
        batches -= 1
        if not batches:
            raise StoppedError

    nothing = np.empty((0, 16), np.float32)
    with open_source(config) as source, closing(open_target(config, source)) as target:
        scan = Scan(Sample(np.empty(0, np.int64), nothing, nothing), 1, target.dtype)
        load(source, target, scan, Steps(config.batch_rows, target.begin(), advance))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pandas_and_duckdb_read_what_was_exported(embeddings: Path) -> None:
    result = run_export(configured(embeddings))
    assert result.is_right
    assert (result.exported, result.empty, result.unmet) == (298, 2, 0)
    stored = np.concatenate([np.load(path) for path in sorted((embeddings / "img_emb").iterdir())])
    frame = pd.read_parquet(embeddings.parent / "out")
    assert np.array_equal(np.stack(frame["vector"].tolist()), stored[frame["id"]].astype(np.float32))
    files = str(embeddings.parent / "out" / "*.parquet")
    found = duckdb.sql(f"SELECT id, vector[2], metadata_id, box.x FROM '{files}' WHERE width = 207")
    assert found is not None
    assert found.fetchall() == [(207, float(stored[207, 1]), "sample-207", 207)]


def test_a_stopped_export_goes_on_and_ends_in_the_same_bytes(embeddings: Path, tmp_path: Path) -> None:
    run_export(configured(embeddings, target=str(tmp_path / "whole")))
    for batches in (1, 2):
        with pytest.raises(StoppedError):
            stop_after(configured(embeddings), batches)
    assert len(contents(tmp_path / "out")) == 1 + 2  # the second run looked at one batch, and wrote one
    result = run_export(configured(embeddings))
    assert (result.done_before, result.is_right) == (128, True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_export_is_checked_again_and_not_written_again(embeddings: Path) -> None:
    run_export(configured(embeddings))
    before = contents(embeddings.parent / "out")
    result = run_export(configured(embeddings))
    assert (result.done_before, result.exported, result.is_right) == (300, 298, True)
    assert contents(embeddings.parent / "out") == before


@pytest.mark.parametrize("damage", ["vector", "metadata", "row", "id"])
def test_what_differs_is_found_and_the_exit_code_says_so(embeddings: Path, damage: str) -> None:
    run_export(configured(embeddings))
    part = embeddings.parent / "out" / "part-000000000064.parquet"
    rows = pq.read_table(part).to_pylist()
    if damage == "vector":
        rows[3]["vector"][0] += 2
    elif damage == "metadata":
        rows[3]["caption"] = "another"
    elif damage == "row":
        del rows[3]
    else:
        rows[3]["id"] = rows[4]["id"]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(part)), part)
    command = ["export", str(embeddings), str(embeddings.parent / "out"), "--to=parquet", "--batch_size=64", "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    wrong = {finding["what"].split()[0] for finding in json.loads(done.stdout)["findings"] if not finding["is_right"]}
    expected = {
        "vector": {"vectors", "exact"},
        "metadata": {"metadata"},
        "row": {"rows", "ids", "vectors", "metadata"},
        "id": {"ids", "vectors", "metadata"},
    }
    assert expected[damage] <= wrong


def test_the_table_shows_what_was_compared(embeddings: Path) -> None:
    done = CliRunner().invoke(cli, ["export", str(embeddings), "--to=parquet", str(embeddings.parent / "out")])
    assert done.exit_code == 0
    assert "exact search" in done.stdout
    assert "out: 298 rows, the embeddings of " in done.stdout.replace("\n", "")
    assert "left out: 2 rows without an embedding" in done.stdout


def test_an_export_of_other_rows_is_refused_and_may_be_overwritten(embeddings: Path) -> None:
    run_export(configured(embeddings))
    with pytest.raises(ExportError, match="other rows, columns or conditions; name another folder"):
        run_export(configured(embeddings, rows=RowsConfig(columns=("caption",))))
    with pytest.raises(ExportError, match="holds float32 vectors, not float16"):
        run_export(configured(embeddings, precision="fp16"))
    with pytest.raises(ExportError, match="begun with --batch_size 64"):
        run_export(configured(embeddings, batch_size=65))
    result = run_export(configured(embeddings, precision="fp16", batch_size=65, overwrite=True))
    assert (result.done_before, result.is_right) == (0, True)


def test_a_folder_with_other_files_is_never_written_into_nor_emptied(embeddings: Path) -> None:
    other = embeddings.parent / "out"
    other.mkdir()
    (other / "mine.jpg").write_bytes(b"a picture")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match=r"mine\.jpg and is not an export"):
            run_export(configured(embeddings, overwrite=overwrite))
        with pytest.raises(ExportError, match="is not an export"):
            run_export(configured(embeddings, overwrite=overwrite, target=str(embeddings)))
    assert [path.name for path in other.iterdir()] == ["mine.jpg"]
    assert not (embeddings / "_export.json").exists()


@pytest.mark.parametrize("engine", ["lance", "pgvector", "qdrant", "milvus"])
def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005 -- called by this name
    with pytest.raises(ConfigError, match=rf"--to {engine} needs .* pip install .*\[{engine}\]"):
        ExportConfig(folder="index", to=cast("Engine", engine), target="x")


def test_rows_fewer_than_the_hits_are_all_compared(tmp_path: Path, write_typed: WriteTyped) -> None:
    embeddings = write_typed(tmp_path / "embeddings", 41)
    result = run_export(configured(embeddings, rows=RowsConfig(where="width < 4")))
    assert (result.exported, result.is_right) == (3, True)


def test_an_export_of_no_row_at_all_says_so(embeddings: Path) -> None:
    with pytest.raises(SourceError, match="nothing was exported"):
        run_export(configured(embeddings, rows=RowsConfig(where="width < 0")))
    assert run_export(configured(embeddings, rows=RowsConfig(where="width < 9"))).is_right


def test_rows_without_an_embedding_are_nothing_to_export(embeddings: Path) -> None:
    run_export(configured(embeddings))
    before = contents(embeddings.parent / "out")
    with open_source(configured(embeddings)) as source:
        empty = np.flatnonzero(~source.is_exported(np.arange(300)))
    for row in empty:
        with pytest.raises(SourceError, match="nothing was exported"):
            run_export(configured(embeddings, rows=RowsConfig(where=f"width = {row}"), overwrite=True))
    assert len(empty) == 2
    assert contents(embeddings.parent / "out") == before


def test_an_export_that_holds_no_file_yet_becomes_another(embeddings: Path) -> None:
    config = configured(embeddings, rows=RowsConfig(where="width > 5"))
    with open_source(config) as source, closing(open_target(config, source)) as target:
        assert target.begin() == 0
    result = run_export(configured(embeddings, batch_size=65))
    assert (result.exported, result.is_right) == (298, True)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_an_export_that_does_not_say_what_it_is_can_be_overwritten(embeddings: Path, text: str) -> None:
    run_export(configured(embeddings))
    (embeddings.parent / "out" / "_export.json").write_text(text)
    with pytest.raises(ExportError, match=r"_export\.json.*; give --overwrite to export again, or remove .*out"):
        run_export(configured(embeddings))
    result = run_export(configured(embeddings, overwrite=True))
    assert (result.done_before, result.is_right) == (0, True)


def test_a_file_as_the_target_is_one_sentence(embeddings: Path) -> None:
    (embeddings.parent / "out").write_text("mine")
    with pytest.raises(ExportError, match="out is a file; --to parquet writes into a folder"):
        run_export(configured(embeddings))
    assert (embeddings.parent / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to=parquet"], "--to parquet writes a folder; name it"),
        (["--to=parquet", "--target=x", "--ann=hnsw"], "--to parquet has no hnsw index; --ann may be none"),
        (["--to=elastic"], "to takes"),
        (["--to=parquet", "--target=x", "--least_recall=2"], "least_recall is a share"),
        (["--to=parquet", "--target=x", "--least_recall=0.9"], "--to parquet builds none; leave it out"),
        (["--to=parquet", "--target=x", "--table=mine"], "leave out --table"),
    ],
)
def test_wrong_options_are_one_sentence(embeddings: Path, options: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["export", str(embeddings), *options])
    assert done.exit_code == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
