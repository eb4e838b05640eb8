"""Files of an index that the system refuses are not called damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_retrieval.errors import StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.files import open_file


def test_an_index_that_the_system_refuses_is_not_to_be_built_again(tmp_path: Path) -> None:
    (tmp_path / "image.index").symlink_to(tmp_path / "image.index")
    with pytest.raises(StorageError, match=r"^cannot read .*image\.index: Too many levels of symbolic links$"):
        open_file(IndexFolder(str(tmp_path)), "image.index")


def test_an_index_that_is_damaged_is_to_be_built_again(tmp_path: Path) -> None:
    (tmp_path / "image.index").write_bytes(b"no index")
    with pytest.raises(StorageError, match=r"image\.index cannot be read as a faiss index.*; build it again$"):
        open_file(IndexFolder(str(tmp_path)), "image.index")
