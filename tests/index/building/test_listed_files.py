"""Indices of lists whose rows stay in their files: what is written is what faiss writes out of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.changed_files import write_parts
from clip_retrieval.index.building.edit_rows import put_rows, remove_rows
from clip_retrieval.index.building.listed_files import open_listed, write_listed
from clip_retrieval.index.building.merged_files import merge_to_file
from clip_retrieval.index.building.parts import merge_into
from clip_retrieval.storage import Folder
from tests.index.building.conftest import make, write

Rows = Callable[..., NDArray[np.float32]]
# np: without faiss's annealing of the codebooks, which takes seconds and changes nothing here
LISTED = (
    *("IVF4,Flat", "IVF4,SQ8", "RR16,IVF4,PQ4x4np", "IVF4_HNSW4,SQfp16", "IVF4,RaBitQ", "PCA8,L2norm,IVF4,SQ4"),
    "IVF120,SQ8",  # mostly empty lists, which faiss writes in another way
    *("IVF2,PQ4x4fs", "RR16,IVF4,PQ8x4fs", "IVF120,PQ2x4fs"),  # in blocks of 32 rows
)
NOT_LISTED = ("Flat", "HNSW4", "IVF4,PQ4x4fs,RFlat", "IVF4,SQ8,RFlat", "IDMap,IVF4,SQ8", "IVF4,RaBitQfs")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[100, 1 << 24])
def _bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and pack a list at a time, and all lists at once."""
    monkeypatch.setattr("clip_retrieval.index.building.listed_files.BYTES_OF_BAND", request.param)
    monkeypatch.setattr("clip_retrieval.index.building.list_layouts.CODES_AT_ONCE", request.param)


def bytes_of(index: Any) -> bytes:
    written: bytes = faiss.serialize_index(index).tobytes()
    return written


@pytest.mark.usefixtures("_bands")
@pytest.mark.parametrize("kind", LISTED)
def test_removed_rows_and_new_ones_give_the_file_of_an_index_in_memory(
    tmp_path: Path, unit_rows: Rows, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_retrieval.index.building.changed_files.ROWS_OF_PART", 8)  # new rows in several files
    rows, ids = unit_rows(150), np.arange(150)
    index = make(rows, kind)
    known = np.setdiff1d(ids[:120], [5, 70])
    index.add_with_ids(rows[known], known)
    path = write(index, tmp_path / "a.index")
    removed, filled = np.array([*range(1, 60, 2), 119]), np.array([70, 5])
    listed = open_listed(path)
    assert listed is not None
    parts = write_parts(listed.index, [(ids[some], rows[some]) for some in (filled, ids[120:130], ids[130:])], tmp_path)
    assert len(parts) == 2
    count = write_listed([replace(listed, removed=np.union1d(removed, filled)), *parts], tmp_path / "b.index")
    remove_rows(index, np.setdiff1d(removed, filled))
    put_rows(index, filled, rows[filled])
    index.add_with_ids(rows[120:], ids[120:])
    assert count == index.ntotal
    assert (tmp_path / "b.index").read_bytes() == bytes_of(index)


@pytest.mark.usefixtures("_bands")
@pytest.mark.parametrize("kind", [kind for kind in LISTED if "HNSW" not in kind])
def test_merged_parts_are_the_file_that_merging_in_memory_gives(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    rows = unit_rows(150)
    empty = bytes_of(make(rows, kind))
    names, starts = ["a.index", "b.index", "c.index"], [0, 40, 100]
    for name, some in zip(names, np.split(rows, starts[1:]), strict=True):
        part = faiss.deserialize_index(np.frombuffer(empty, np.uint8))
        part.add(some)
        write(part, tmp_path / name)
    whole = faiss.read_index(str(tmp_path / "a.index"))
    for name, start in zip(names[1:], starts[1:], strict=True):
        part = faiss.read_index(str(tmp_path / name))
        merge_into(whole, part, start)
    assert merge_to_file(Folder(str(tmp_path)), names, starts, tmp_path / "merged.index") == 150
    assert (tmp_path / "merged.index").read_bytes() == bytes_of(whole)


@pytest.mark.parametrize("kind", NOT_LISTED)
def test_another_index_is_opened_by_others(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    index = make(unit_rows(300), kind)
    index.add_with_ids(unit_rows(300), np.arange(300)) if "IDMap" in kind else index.add(unit_rows(300))
    assert open_listed(write(index, tmp_path / "a.index")) is None


def test_a_file_of_another_length_or_with_a_map_of_its_ids_is_not_trusted(tmp_path: Path, unit_rows: Rows) -> None:
    index = make(unit_rows(100), "IVF4,SQ8")
    index.add(unit_rows(100))
    path = Path(write(index, tmp_path / "a.index"))
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    assert open_listed(str(path)) is None
    index.set_direct_map_type(faiss.DirectMap.Array)
    assert open_listed(write(index, path)) is None


@pytest.mark.parametrize("kind", ["IVF4,SQ8", "IVF4,PQ4x4fs"])
def test_a_file_that_is_cut_off_meanwhile_is_named(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    index = make(unit_rows(100), kind)
    index.add(unit_rows(100))
    path = Path(write(index, tmp_path / "a.index"))
    listed = open_listed(str(path))
    assert listed is not None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IndexBuildError, match=r"a\.index changed while"):
        write_listed([listed], tmp_path / "b.index")


def test_a_list_of_blocks_that_has_other_rows_meanwhile_is_named(tmp_path: Path, unit_rows: Rows) -> None:
    rows = unit_rows(100)
    index = make(rows, "IVF1,PQ4x4fs")
    index.add(rows[:99])  # as many blocks as of 98 rows
    path = Path(write(index, tmp_path / "a.index"))
    listed = open_listed(str(path))
    assert listed is not None
    with path.open("r+b") as file:
        file.seek(listed.start)
        file.write((98).to_bytes(8, "little"))
    with pytest.raises(IndexBuildError, match=r"a\.index changed while"):
        write_listed([listed], tmp_path / "b.index")


@pytest.mark.parametrize("kind", ["IVF4,SQ8", "IVF120,SQ8", "IVF4,PQ4x4fs"])
def test_a_damaged_file_is_no_faiss_index_or_opened_by_others(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    index = make(unit_rows(150), kind)
    index.add(unit_rows(100))
    path = Path(write(index, tmp_path / "a.index"))
    whole = path.read_bytes()
    begin = whole.index(b"il")  # ilar or ilbl: what follows is read by us, not by faiss
    path.write_bytes(whole[: begin + 4])
    with pytest.raises(RuntimeError):
        open_listed(str(path))
    for place in range(begin + 4, min(len(whole), begin + 100)):
        for byte in (0, 1, 0x7F, 0xFF):
            if whole[place] != byte:
                path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
                assert opens_nothing(str(path), index)


def opens_nothing(path: str, index: Any) -> bool:
    """Say whether a file is refused; codes and ids that were changed are not looked at, so they may be opened."""
    try:
        listed = open_listed(path)
    except RuntimeError:
        return True
    return listed is None or int(listed.sizes.sum()) == index.ntotal
