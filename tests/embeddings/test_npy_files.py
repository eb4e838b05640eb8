"""npy files that cannot be read: why, in a sentence that names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from clip_retrieval.embeddings.npy_files import open_npy
from clip_retrieval.embeddings.row_sums import read_blocks
from clip_retrieval.errors import IndexBuildError, StorageError
from clip_retrieval.storage import Folder


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))

    def refuse(path: str, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(IndexBuildError, match=r"^cannot read .*a\.npy: Permission denied"):
        open_npy(Folder(str(tmp_path)), "a.npy")


def test_a_file_that_is_cut_off_is_called_unreadable(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((200, 3), np.float32))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-100])
    with pytest.raises(IndexBuildError, match=r"a\.npy is not a readable npy file: "):
        open_npy(Folder(str(tmp_path)), "a.npy")


def test_a_device_in_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.npy").symlink_to(os.devnull)
    with pytest.raises(StorageError, match=r"a\.npy is a pipe, a socket or a device"):
        open_npy(Folder(str(tmp_path)), "a.npy")


@pytest.mark.parametrize("protocol", ["", "memory:/"])
def test_rows_that_are_stored_by_columns_are_not_copied(tmp_path: Path, protocol: str) -> None:
    rows = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(3, 2))
    folder = Folder(f"{protocol}{tmp_path}")
    with folder.staged("columns.npy") as staged, staged.open("wb") as file:
        np.save(file, rows)
    with pytest.raises(IndexBuildError, match=r"columns\.npy is in Fortran order; save it with"):
        list(read_blocks(folder, "columns.npy"))
    with folder.staged("one.npy") as staged, staged.open("wb") as file:
        np.save(file, rows[:1])
    assert np.concatenate(list(read_blocks(folder, "one.npy"))).tolist() == rows[:1].tolist()
    folder.remove("")
