"""Embeddings on a store: fetched once, read locally, removed afterwards; only their headers if that is enough."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.blobs import POINTER_BYTES
from clip_retrieval.cli import cli
from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.npy_files import HEADER_BYTES
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.score import score_index
from clip_retrieval.scratch import HOST, TEMPORARY
from clip_retrieval.storage import Folder, temporary_folder

Rows = NDArray[np.float32]
MakeRows = Callable[..., Rows]
WriteRun = Callable[..., Path]
GONE = 999_999_999  # no process has that number

pytestmark = pytest.mark.usefixtures("one_thread")


class WatchedFile(io.BytesIO):
    """A file of the store that counts the bytes read from it."""

    def __init__(self, name: str, data: bytes, counts: Counter[str]) -> None:
        super().__init__(data)
        self.name, self.counts = name, counts

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.counts[self.name] += len(data)
        return data


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Give the bytes that are read from each npy file on the store, by name."""
    counts: Counter[str] = Counter()
    plain = MemoryFileSystem._open

    def watch(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        file = plain(self, path, mode, **options)
        is_counted = mode == "rb" and path.endswith(".npy")
        return WatchedFile(path.rpartition("/")[2], file.getvalue(), counts) if is_counted else file

    def cat(self: Any, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        with self.open(path, "rb") as file:
            file.seek(start or 0)
            return bytes(file.read(-1 if end is None else end - (start or 0)))

    monkeypatch.setattr(MemoryFileSystem, "_open", watch)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat)
    return counts


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def emb(tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun, temporary: Path) -> Iterator[str]:  # noqa: ARG001
    """Give an embeddings folder on the store, of 2 x 400 rows of both modalities."""
    images, texts = unit_rows(800), unit_rows(800, seed=1)
    images[5] = 0
    local = write_run(tmp_path / "emb", np.split(images, 2), np.split(texts, 2))
    MemoryFileSystem().put(str(local), f"/{tmp_path.name}", recursive=True)
    yield f"memory://{tmp_path.name}"
    for name in (tmp_path.name, f"{tmp_path.name}-ix"):
        if MemoryFileSystem().exists(f"/{name}"):
            MemoryFileSystem().rm(f"/{name}", recursive=True)


def size_of(name: str, tmp_path: Path) -> int:
    return (tmp_path / "emb" / name.rpartition("_")[0] / name).stat().st_size


@pytest.mark.parametrize("engine", ["faiss", "autofaiss"])
def test_a_build_reads_every_file_once_and_gives_what_a_local_one_gives(
    emb: str, read: Counter[str], tmp_path: Path, temporary: Path, engine: str
) -> None:
    clip_index(emb, str(tmp_path / "ix"), engine=engine, nb_cores=1)
    assert len(read) == 4
    for name, count in read.items():
        assert size_of(name, tmp_path) <= count <= size_of(name, tmp_path) + HEADER_BYTES
    clip_index(str(tmp_path / "emb"), str(tmp_path / "local"), engine=engine, nb_cores=1)
    for name in ("image.index", "text.index", "image.empty.npy", "image.checksums.npy"):
        assert (tmp_path / "ix" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert not (tmp_path / "ix" / "_partial").exists()
    assert list(temporary.iterdir()) == []


def test_an_index_on_the_store_too_leaves_nothing_here(emb: str, temporary: Path) -> None:
    clip_index(emb, f"{emb}-ix", nb_cores=1)
    assert MemoryFileSystem().exists(f"{emb}-ix/image.index")
    assert list(temporary.iterdir()) == []


def test_an_update_and_a_score_read_every_file_once(
    emb: str, read: Counter[str], tmp_path: Path, temporary: Path, unit_rows: MakeRows, write_run: WriteRun
) -> None:
    clip_index(emb, str(tmp_path / "ix"), nb_cores=1)
    more = [[*np.split(unit_rows(800, seed=seed), 2), unit_rows(50, seed=seed + 2)] for seed in (0, 1)]
    more[0][0][5] = 0
    write_run(tmp_path / "emb", *more)
    MemoryFileSystem().put(f"{tmp_path / 'emb'}/", f"/{tmp_path.name}/", recursive=True)
    for run in (
        lambda: clip_index(emb, str(tmp_path / "ix"), nb_cores=1, update=True),
        lambda: score_index(str(tmp_path / "ix"), emb, nb_cores=1),
    ):
        read.clear()
        run()
        assert len(read) == 6
        for name, count in read.items():
            assert count <= size_of(name, tmp_path) + HEADER_BYTES
        assert list(temporary.iterdir()) == []


def test_a_dry_run_reads_the_headers(emb: str, read: Counter[str], tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["index", emb, str(tmp_path / "ix"), "--dry_run", "--json"])
    assert told.exit_code == 0, told.output
    assert len(read) == 4
    assert set(read.values()) == {HEADER_BYTES}


def test_without_room_the_store_is_read_again_and_that_is_told(
    emb: str, read: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    clip_index(emb, str(tmp_path / "ix"), nb_cores=1)
    name = "img_emb_1.npy"
    assert read[name] > 2 * size_of(name, tmp_path)
    told = [record.getMessage() for record in caplog.records if "read from their store" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("102 kB of embeddings are read from their store")
    assert "100 kB are free in " in told[0]


def test_files_on_this_machine_are_not_copied(tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun) -> None:
    vectors = open_vectors(Folder(str(write_run(tmp_path / "emb", [unit_rows(9)]))), "img_emb")
    assert vectors is not None

    def refuse() -> Any:
        raise AssertionError

    with fetched({"image": vectors}, refuse) as found:
        assert found["image"] is vectors


def test_what_a_killed_run_fetched_goes_with_the_next(emb: str, tmp_path: Path, temporary: Path) -> None:
    left = [temporary / f"{TEMPORARY}{HOST}.{GONE}.abc", tmp_path / "ix" / "_partial" / f"{HOST}.{GONE}.abc"]
    kept = [temporary / f"{TEMPORARY}{HOST}.{os.getppid()}.abc", temporary / f"{TEMPORARY}another.{GONE}.abc"]
    for folder in (*left, *kept):
        folder.mkdir(parents=True)
        (folder / "rows.npy").write_bytes(b"0")
    clip_index(emb, str(tmp_path / "ix"), nb_cores=1)
    clip_index(emb, f"{emb}-ix", nb_cores=1)
    assert [folder.exists() for folder in (*left, *kept)] == [False, False, True, True]


def test_a_file_that_changes_while_it_is_fetched_is_told_of(emb: str) -> None:
    vectors = open_vectors(Folder(emb), "img_emb")
    assert vectors is not None
    file = io.BytesIO()
    np.save(file, np.ones((3, 16), np.float32))
    MemoryFileSystem().pipe_file(vectors.path(vectors.files[1]), file.getvalue())
    with (
        pytest.raises(IndexBuildError, match=r"img_emb_1\.npy changed while it was fetched"),
        fetched({"image": vectors}, temporary_folder),
    ):
        pass


def test_what_fails_ends_the_rest_at_once(emb: str, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    begun, ran_out, tries = Event(), Event(), Counter[str]()

    def get(_: Any, source: str, __: str, callback: Any) -> None:
        tries[source.rpartition("/")[2]] += 1
        if source.endswith("img_emb_0.npy"):
            assert begun.wait(30)
            raise FileNotFoundError(source)
        until = time.monotonic() + 60
        while time.monotonic() < until:  # a file without an end
            begun.set()
            callback.relative_update(1)
            time.sleep(0.01)
        ran_out.set()

    monkeypatch.setattr(MemoryFileSystem, "get_file", get)
    vectors = open_vectors(Folder(emb), "img_emb")
    assert vectors is not None
    with (
        pytest.raises(IndexBuildError, match=r"img_emb_0\.npy was removed before"),
        fetched({"image": vectors}, temporary_folder),
    ):
        pass
    assert not ran_out.is_set()
    assert tries == {"img_emb_0.npy": 1, "img_emb_1.npy": 1}
    assert list(temporary.iterdir()) == []


def test_errors_name_the_store(emb: str, tmp_path: Path) -> None:
    rows = np.load(tmp_path / "emb" / "img_emb" / "img_emb_1.npy")
    rows[7, 3] = np.nan
    file = io.BytesIO()
    np.save(file, rows)
    MemoryFileSystem().pipe_file(f"/{tmp_path.name}/img_emb/img_emb_1.npy", file.getvalue())
    with pytest.raises(IndexBuildError, match=rf"row 7 of /{tmp_path.name}/img_emb/img_emb_1\.npy is not finite"):
        clip_index(emb, str(tmp_path / "ix"))
    assert not (tmp_path / "ix").exists()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data[:-40], "it has 25,688 bytes, and should have 25,728"),
        (lambda data: data[:20], "EOF"),
        (lambda _: b"", "EOF"),
        (lambda _: b"hello there", "it is a file of another kind"),
        (lambda data: b"PK" + data, "archive of several arrays"),
    ],
    ids=["cut", "cut in its header", "empty", "text", "archive"],
)
def test_a_damaged_file_is_told_of_by_its_header(
    emb: str, read: Counter[str], tmp_path: Path, spoil: Any, why: str
) -> None:
    path = f"/{tmp_path.name}/text_emb/text_emb_1.npy"
    MemoryFileSystem().pipe_file(path, spoil(MemoryFileSystem().cat_file(path)))
    read.clear()
    with pytest.raises(IndexBuildError, match=rf"text_emb_1\.npy is not a readable npy file: .*{why}"):
        clip_index(emb, str(tmp_path / "ix"))
    assert max(read.values()) <= HEADER_BYTES + POINTER_BYTES  # the second look is for a Git LFS pointer


def test_who_gets_vectors_elsewhere_reads_the_store(emb: str) -> None:
    vectors = open_vectors(Folder(emb), "img_emb")
    assert vectors is not None
    with fetched({"image": vectors}, temporary_folder) as found:
        assert found["image"].is_here
        sent: Vectors = pickle.loads(pickle.dumps(found["image"]))
        assert not sent.is_here
        np.testing.assert_array_equal(sent.open(sent.files[1]), found["image"].open(vectors.files[1]))


def test_it_says_what_it_fetches(emb: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clip_index(emb, str(tmp_path / "ix"), nb_cores=1)
    assert f"fetching 102 kB of embeddings from {emb}" in caplog.text
