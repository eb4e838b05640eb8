"""npy files that cannot be read: why, in a sentence that names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from clip_retrieval.embeddings.npy_files import open_npy
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
