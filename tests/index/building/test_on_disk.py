"""A part has its name only once its bytes are on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.errors import StorageError
from clip_retrieval.index.building.on_disk import staged_on_disk, sync
from clip_retrieval.index.engines import sync_indices
from clip_retrieval.index.engines.faiss import FaissEngine
from clip_retrieval.index.engines.local import LocalRunner
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.layout import IndexFolder
from clip_retrieval.storage import Folder

Rows = Callable[..., NDArray[np.float32]]
Synced = list[tuple[str, int]]  # what fsync was called on: where it lay then, and its size


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    """Note every call of fsync, as the kernel's table of open files tells it; the call itself goes through."""
    noted: Synced = []
    fsync = os.fsync

    def note(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        noted.append((str(path), 0 if path.is_dir() else path.stat().st_size))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    return noted


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@linux
def test_a_file_is_synced_whole_before_it_has_its_name_and_its_folder_afterwards(
    tmp_path: Path, synced: Synced
) -> None:
    with staged_on_disk(Folder(str(tmp_path)), "below/part") as staged:
        staged.write_bytes(b"12345")
    assert synced == [(str(staged), 5), (str(tmp_path / "below"), 0)]
    assert (tmp_path / "below" / "part").read_bytes() == b"12345"


@linux
def test_what_fails_is_neither_synced_nor_named(tmp_path: Path, synced: Synced) -> None:
    with pytest.raises(StorageError), staged_on_disk(Folder(str(tmp_path)), "part") as staged:
        staged.read_bytes()
    assert not synced
    assert not (tmp_path / "part").exists()


@linux
def test_all_files_of_a_folder_are_synced(tmp_path: Path, synced: Synced) -> None:
    for name in ("00.index", "01.index"):
        (tmp_path / name).write_bytes(b"1")
    sync(tmp_path)
    assert [Path(path).name for path, _ in synced] == ["00.index", "01.index", tmp_path.name]


@linux
@pytest.mark.usefixtures("one_thread")
def test_every_file_of_a_build_in_parts_is_synced_under_its_scratch_name(
    tmp_path: Path, unit_rows: Rows, write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, synced: Synced
) -> None:
    monkeypatch.setattr(LocalRunner, "rows_of_task", 100)
    vectors = open_vectors(Folder(str(write_run(tmp_path / "emb", [unit_rows(200)]))), "img_emb")
    assert vectors is not None
    bounds = Bounds(max_index_bytes=10**9, available_bytes=10**9, cores=1, index_key="IVF4,SQ8,Refine(SQ8)")
    engine = FaissEngine(LocalRunner(), Folder(str(tmp_path / "building")))
    engine(vectors, bounds, tmp_path / "image.index")

    files = [(Path(path), size) for path, size in synced if size]
    parts = [f"part_{first:012d}_{first + 100:012d}" for first in (0, 100)]
    names = [f"{part}.{kind}" for part in parts for kind in ("codes", "index")]
    assert [path.name for path, _ in files] == ["trained.index", *names, "00.index"]
    assert all("_partial" in path.parts for path, _ in files)
    [work] = engine.finished
    for path, size in files[:-1]:
        assert Path(work.path(path.name)).stat().st_size == size
    assert (tmp_path / "image.index").stat().st_size == files[-1][1]
    assert faiss.read_index(str(tmp_path / "image.index")).ntotal == 200


@linux
def test_an_index_is_synced_before_its_parts_go(tmp_path: Path, synced: Synced) -> None:
    (tmp_path / "image.index").write_bytes(b"123")
    sync_indices(IndexFolder(str(tmp_path)))
    assert synced == [(str(tmp_path / "image.index"), 3), (str(tmp_path), 0)]
