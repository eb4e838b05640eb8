"""metadata.arrow beside an index: when it is written, and that its rows are those of the index ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from clip_retrieval import clip_index
from clip_retrieval.cli import cli
from clip_retrieval.index.engines.local import LocalRunner
from clip_retrieval.index.folder import metadata_files
from clip_retrieval.layout import METADATA_ARROW, IndexFolder
from clip_retrieval.metadata import open_metadata
from clip_retrieval.metadata.arrow import ArrowMetadata

WriteRun = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, unit_rows: Callable[..., Any], write_run: WriteRun) -> Path:
    return write_run(tmp_path / "emb", np.split(unit_rows(31), [10, 10, 20]))


def build(run: Path, **options: object) -> Path:
    clip_index(str(run), str(run.parent / "ix"), engine="faiss", nb_cores=1, **options)
    return run.parent / "ix"


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def captions(folder: Path, ids: list[int]) -> list[object]:
    metadata = open_metadata(IndexFolder(str(folder)))
    assert isinstance(metadata, ArrowMetadata)
    values: list[object] = metadata.rows(np.array(ids), ["caption"])["caption"].to_pylist()
    return values


def test_a_build_writes_rows_by_index_id(run: Path) -> None:
    assert captions(build(run), [30, 0, 10, 10]) == ["row 30", "row 0", "row 10", "row 10"]


@pytest.mark.parametrize(
    ("options", "has_arrow", "has_parquet"),
    [
        ({"write_arrow": False}, False, True),
        ({"copy_metadata": False}, False, False),
        ({"copy_metadata": False, "write_arrow": True}, True, False),
    ],
)
def test_options_say_what_metadata_lies_beside_the_index(
    run: Path, options: dict[str, object], has_arrow: bool, has_parquet: bool
) -> None:
    folder = build(run, **options)
    assert (folder / METADATA_ARROW).exists() == has_arrow
    assert (folder / "metadata").exists() == has_parquet
    if has_arrow:
        assert captions(folder, [7]) == ["row 7"]


def test_another_build_replaces_the_rows(run: Path, unit_rows: Callable[..., Any], write_run: WriteRun) -> None:
    build(run)
    write_run(run, np.split(unit_rows(31), [10, 10, 20]), label="new")
    assert captions(build(run), [5]) == ["new 5"]


def test_without_write_arrow_an_earlier_one_goes(run: Path) -> None:
    build(run)
    assert not (build(run, write_arrow=False) / METADATA_ARROW).exists()


def test_an_earlier_file_of_other_embeddings_goes_where_no_metadata_is_copied(run: Path) -> None:
    build(run)
    folder = build(run, copy_metadata=False)
    assert not (folder / METADATA_ARROW).exists()


def test_an_update_makes_a_damaged_file_anew(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = build(run) / METADATA_ARROW
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"row 7", b"row 8"))
    assert CliRunner().invoke(cli, ["index", "info", str(path.parent), "--check"]).exit_code == 1
    build(run, update=True)
    assert path.read_bytes() == whole
    assert captions(path.parent, [7]) == ["row 7"]
    assert CliRunner().invoke(cli, ["index", "info", str(path.parent), "--check"]).exit_code == 0
    assert "damaged" not in caplog.text


def test_a_build_stopped_before_the_copies_are_whole_leaves_what_was_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(run)
    before = (folder / METADATA_ARROW).read_bytes()
    monkeypatch.setattr(metadata_files, "copy_parquet", stop)
    with pytest.raises(KeyboardInterrupt):
        build(run)
    assert (folder / METADATA_ARROW).read_bytes() == before


def test_what_was_added_is_kept_until_the_index_stands(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalRunner, "rows_of_task", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata_files, "copy_parquet", stop)
        with pytest.raises(KeyboardInterrupt):
            build(run)
    assert len(list((run.parent / "ix" / "_building").glob("*/part_*.index"))) == 4
    assert captions(build(run), [5]) == ["row 5"]
    assert not (run.parent / "ix" / "_building").exists()


def test_an_update_writes_the_file_where_it_is_missing(run: Path) -> None:
    assert not (build(run, write_arrow=False) / METADATA_ARROW).exists()
    assert not (build(run, update=True) / METADATA_ARROW).exists()  # as it was built
    assert captions(build(run, update=True, write_arrow=None), [5]) == ["row 5"]
    was = (run.parent / "ix" / METADATA_ARROW).stat().st_mtime_ns
    assert (build(run, update=True) / METADATA_ARROW).stat().st_mtime_ns == was


def test_plain_pyarrow_reads_the_file(run: Path) -> None:
    with pa.memory_map(str(build(run) / METADATA_ARROW)) as file:
        assert pa.ipc.open_file(file).read_all()["caption"].to_pylist() == [f"row {i}" for i in range(31)]
