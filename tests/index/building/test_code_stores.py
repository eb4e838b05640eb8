"""Stores: what goes straight to the file is, byte for byte, what faiss would have written out of memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.code_stores import (
    CodesInFile,
    code_bytes,
    encode,
    find_lists,
    find_store,
    write_codes,
    write_with_store,
)

Rows = Callable[..., NDArray[np.float32]]
# np: without faiss's annealing of the codebooks, which takes seconds and changes no size
STORED = (
    *("Flat", "SQfp16", "SQ8", "SQ4", "PQ8x4np", "RR16,PQ8x4np"),
    *("IVF4,SQ4,Refine(SQfp16)", "OPQ4,IVF4,PQ4x4fs,Refine(SQ8)", "IVF4,SQ8,RFlat", "IVF4,SQ4,Refine(RR16,PQ4x4np)"),
)
HELD = ("IVF4,SQ8", "PQ8x4fs", "IVF4,SQ4,Refine(PQ8x4fs)")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(unit_rows: Rows) -> Callable[[str], Any]:
    """Give a function that trains an index of a kind; the same one for all tests."""

    @cache
    def train(kind: str) -> Any:
        index = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(unit_rows(300))
        return index

    return train


@pytest.mark.parametrize("kind", [*STORED, *HELD])
@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 300])
def test_a_file_is_the_one_that_faiss_writes(
    tmp_path: Path, unit_rows: Rows, trained: Callable[[str], Any], kind: str, stored: str, count: int
) -> None:
    rows, empty = unit_rows(count).astype(stored), trained(kind)
    rows[0, :4] = [-0.0, 6e-8, -6e-5, 0]  # among them what half precision holds with fewer digits
    whole, index = faiss.clone_index(empty), faiss.clone_index(empty)
    whole.add(rows.astype(np.float32))

    if (lists := find_lists(index)) is not None:
        lists.add(rows.astype(np.float32))
    store = find_store(index)
    codes = [] if store is None else encode(store, np.array_split(rows, 3) if count > 3 else [rows])
    write_with_store(index, codes, count, tmp_path / "made.index")

    assert (store is not None) == (kind in STORED)
    assert (tmp_path / "made.index").read_bytes() == faiss.serialize_index(whole).tobytes()


def test_codes_are_as_long_as_the_store_says(unit_rows: Rows, trained: Callable[[str], Any]) -> None:
    for kind, length in (("SQ8", 16), ("RR16,PQ8x4np", 4), ("Flat", 64), ("SQfp16", 32)):
        store = find_store(trained(kind))
        assert code_bytes(store) == length
        assert [codes.nbytes for codes in encode(store, [unit_rows(7)])] == [7 * length]


def test_a_faiss_that_writes_arrays_otherwise_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_rows: Rows
) -> None:
    index = faiss.index_factory(16, "SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(unit_rows(300))
    monkeypatch.setattr(
        "clip_retrieval.index.building.code_stores.secrets.token_bytes", lambda count: bytes(count - 1) + b"!"
    )
    monkeypatch.setattr(faiss, "write_index", lambda index, writer: None)  # noqa: ARG005 -- as faiss has it
    with pytest.raises(RuntimeError, match="does not write arrays in one piece"):
        write_with_store(index, [], 1, tmp_path / "made.index")


def cannot(*_: object) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def may_not(*_: object) -> int:  # in some containers
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("by", ["the kernel", cannot, may_not, None])
def test_codes_are_copied_out_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any) -> None:
    if by is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)  # as it is elsewhere than on Linux
    elif by != "the kernel":
        monkeypatch.setattr(os, "copy_file_range", by)
    content = bytes(range(256)) * 3000
    (tmp_path / "source").write_bytes(content)
    ranges = [CodesInFile(str(tmp_path / "source"), 7, 600_000, 6), CodesInFile(str(tmp_path / "source"), 3, 10, 1)]
    with (tmp_path / "target").open("wb") as target:
        target.write(b"before")
        write_codes(ranges, target)
        target.write(b"after")
    wanted = b"before" + content[7:600_007] + content[3:13] + b"after"
    assert (tmp_path / "target").read_bytes() == wanted
    assert [len(part) for part in ranges] == [6, 1]


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_file_that_was_cut_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_kernel: bool
) -> None:
    if not by_kernel:
        monkeypatch.setattr(os, "copy_file_range", cannot)
    (tmp_path / "source.npy").write_bytes(bytes(99))
    with (
        (tmp_path / "target").open("wb") as target,
        pytest.raises(IndexBuildError, match=r"source.npy changed while the index was built; build it again"),
    ):
        write_codes([CodesInFile(str(tmp_path / "source.npy"), 0, 100, 1)], target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(10**6))
    with Path("/dev/full").open("wb", buffering=0) as target, pytest.raises(OSError, match="No space left"):
        write_codes([CodesInFile(str(tmp_path / "source"), 0, 10**6, 1)], target)
