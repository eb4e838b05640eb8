"""Reading bytes in place: parts of files, stores that fail, names that are not UTF-8."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from clip_retrieval import blobs, clip_inference
from clip_retrieval.blobs import BlobRef, LostError, StoreError, may_pass, read_blob


class Flaky(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store with one object of a hundred bytes, whose reads fail a few times first."""

    protocol = "flaky"
    failures_left = 0
    reads = 0
    error: type[Exception] = OSError

    def cat_file(self, _path: str, start: int | None = None, end: int | None = None) -> bytes:
        Flaky.reads += 1
        if Flaky.failures_left > 0:
            Flaky.failures_left -= 1
            raise Flaky.error("not now")
        return bytes(range(100))[start:end]


class Foreign(Exception):  # noqa: N818
    """An error of a store's own library."""


Foreign.__module__ = "somestore.errors"


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(blobs, "FIRST_PAUSE", 0.0)
    Flaky.failures_left = Flaky.reads = 0
    Flaky.error = OSError
    return Flaky


def test_a_part_of_an_object_is_one_request(flaky: type[Flaky]) -> None:
    assert read_blob(BlobRef("flaky://a/b.bin", 10, 5)) == bytes(range(10, 15))
    assert read_blob(BlobRef("flaky://a/b.bin")) == bytes(range(100))
    assert flaky.reads == 2


@pytest.mark.parametrize("error", [OSError, TimeoutError, Foreign])
def test_what_may_pass_is_tried_again(flaky: type[Flaky], error: type[Exception]) -> None:
    flaky.error, flaky.failures_left = error, blobs.STORE_RETRIES

    assert len(read_blob(BlobRef("flaky://a/b.bin"))) == 100
    assert flaky.reads == blobs.STORE_RETRIES + 1


@pytest.mark.parametrize("error", [OSError, Foreign])
def test_after_the_last_try_the_error_is_an_oserror(flaky: type[Flaky], error: type[Exception]) -> None:
    flaky.error, flaky.failures_left = error, 1000

    with pytest.raises(OSError, match="not now"):
        read_blob(BlobRef("flaky://a/b.bin"))
    assert flaky.reads == blobs.STORE_RETRIES + 1


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_what_will_not_pass_is_not_tried_again(flaky: type[Flaky], error: type[Exception]) -> None:
    flaky.error, flaky.failures_left = error, 1000

    with pytest.raises(error):
        read_blob(BlobRef("flaky://a/b.bin"))
    assert flaky.reads == 1


def test_a_store_that_tries_again_itself_is_asked_once(flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flaky, "retries", 5, raising=False)
    flaky.failures_left = 1000

    with pytest.raises(OSError, match="not now"):
        read_blob(BlobRef("flaky://a/b.bin"))
    assert flaky.reads == 1


def test_a_part_that_is_cut_is_an_error(flaky: type[Flaky]) -> None:
    with pytest.raises(StoreError, match="gave 10 bytes where 20 were asked for"):
        read_blob(BlobRef("flaky://a/b.bin", 90, 20))
    assert flaky.reads == 1


def test_errors_of_the_bytes_are_told_from_those_of_the_store() -> None:
    assert [may_pass(error) for error in (OSError(5, "io"), TimeoutError(), StoreError(), OSError("bad page"))] == [
        True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("readers", [0, 1])
def test_file_names_that_are_not_utf8_are_read(tmp_path: Path, make_jpeg: Any, read_table: Any, readers: int) -> None:
    (tmp_path / "in").mkdir()
    with open(os.path.join(os.fsencode(tmp_path / "in"), b"caf\xe9.jpg"), "wb") as file:  # noqa: PTH118, PTH123
        file.write(make_jpeg(0))

    options = {"clip_model": "hash:16?size=32", "num_prepro_workers": readers}
    summary = clip_inference(tmp_path / "in", tmp_path / "out", **options)

    assert summary.stats.image_count == 1
    assert read_table(tmp_path / "out", "metadata")["image_path"].tolist() == [f"{tmp_path}/in/caf\ufffd.jpg"]


def link_to_the_kernel(path: Path) -> None:
    if not Path("/proc/kmsg").exists():
        pytest.skip("only Linux has /proc")
    path.symlink_to("/proc/kmsg")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, link_to_the_kernel])
def test_only_regular_files_are_read(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x.jpg")

    with pytest.raises(LostError) as caught:
        read_blob(BlobRef(str(tmp_path / "x.jpg")))
    assert caught.value.reason == "not_a_file"


@pytest.mark.parametrize("size", [None, 11])
def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(blobs, "LARGEST_BLOB", 10)
    (tmp_path / "x.jpg").write_bytes(bytes(11))

    with pytest.raises(LostError, match=r": 11$") as caught:  # its size is known before anything is read
        read_blob(BlobRef(str(tmp_path / "x.jpg"), 0, size))
    assert caught.value.reason == "too_large"
    assert len(read_blob(BlobRef(str(tmp_path / "x.jpg"), 0, 10))) == 10


@pytest.mark.parametrize("is_read", [True, False])
def test_a_git_lfs_pointer_is_no_picture(tmp_path: Path, is_read: bool) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "x.jpg").write_bytes(pointer)

    with pytest.raises(LostError, match="git lfs pull") as caught:
        read_blob(pointer if is_read else BlobRef(str(tmp_path / "x.jpg")))
    assert caught.value.reason == "git_lfs_pointer"


def test_a_compressed_tar_behind_a_signed_url_is_decompressed_for_its_members() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("a.tar", "a.tar.gz"):
        fs.pipe_file(f"/signed/{name}?signature=a/b", gzip.compress(bytes(range(100))))
        assert read_blob(BlobRef(f"memory://signed/{name}?signature=a/b", 10, 5)) == bytes(range(10, 15))
