"""Indices whose stores stay in their files: what is changed and written again is what faiss writes out of memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.index.building.code_stores import encode, find_lists, find_store, write_with_store
from clip_retrieval.index.building.edit_rows import put_rows, remove_rows
from clip_retrieval.index.building.merged_files import merge_in_memory
from clip_retrieval.index.building.parts import merge_into
from clip_retrieval.index.building.stored_files import StoredFile, open_stored
from clip_retrieval.storage import Folder
from tests.index.building.conftest import make, write

Rows = Callable[..., NDArray[np.float32]]
# np: without faiss's annealing of the codebooks, which takes seconds and changes nothing here
STORED = (
    *("Flat", "SQfp16", "SQ8", "PQ4x4np", "IVF4,SQ4,Refine(SQfp16)", "RR16,IVF4,PQ4x4fs,Refine(SQ8)", "IVF4,SQ8,RFlat"),
    *(
        "IVF4,PQ4x4np,Refine(SQ8)",
        "RR16,IVF4,SQ8,Refine(RR16,PQ4x4np)",
        "IVF4,SQ8,Refine(PCA8,SQ8)",
        "IVF4_HNSW4,SQ8,Refine(SQfp16)",
    ),
)
NOT_STORED = ("IVF4,SQ8", "RR16,IVF4,SQ8", "HNSW4", "IVF4,SQ4,Refine(PQ4x4fs)")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", STORED)
def test_the_codes_are_where_the_file_has_them(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    rows = unit_rows(100)
    index = make(rows, kind)
    index.add(rows)
    path = write(index, tmp_path / "a.index")
    stored = open_stored(path)
    assert stored is not None
    assert (stored.codes.row_count, stored.index.ntotal) == (100, 100)
    held = Path(path).read_bytes()[stored.codes.start :][: stored.codes.size]
    assert held == b"".join(codes.tobytes() for codes in encode(find_store(stored.index), [rows]))
    write_with_store(stored.index, [stored.codes], 100, tmp_path / "again.index")
    assert (tmp_path / "again.index").read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("kind", STORED)
def test_changed_rows_and_new_ones_give_the_file_of_an_index_in_memory(
    tmp_path: Path, unit_rows: Rows, kind: str
) -> None:
    rows, later = unit_rows(100), unit_rows(120)
    index = make(rows, kind)
    index.add(rows)
    stored = open_stored(write(index, tmp_path / "a.index"))
    assert stored is not None
    gone, filled = np.array([1, 64]), np.array([5, 70])
    put_rows(index, filled, later[filled])
    remove_rows(index, gone)
    lists, store = find_lists(stored.index), find_store(stored.index)
    assert store is not None
    new = np.arange(100, 120)
    if lists is None:
        later[gone] = 0
        index.add(later[new])
    else:
        later[gone] = rows[gone]  # which a refinement keeps
        put_rows(lists, filled, later[filled])
        remove_rows(lists, gone)
        for of_lists in (lists, faiss.downcast_index(index.base_index)):
            of_lists.add_with_ids(later[new], new)
        faiss.downcast_index(index.refine_index).add(later[new])
        index.ntotal = 120
    changed = np.union1d(filled, gone)
    codes = chain(stored.changed(changed, lambda ids: store.sa_encode(later[ids])), encode(store, [later[new]]))
    write_with_store(stored.index, codes, 120, tmp_path / "b.index")
    assert (tmp_path / "b.index").read_bytes() == faiss.serialize_index(index).tobytes()


def test_blocks_without_changed_rows_are_copied_from_file_to_file(
    tmp_path: Path, unit_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_retrieval.index.building.stored_files.ROWS_AT_ONCE", 32)
    index = make(unit_rows(100), "SQ8")
    index.add(unit_rows(100))
    stored = open_stored(write(index, tmp_path / "a.index"))
    assert stored is not None
    pieces = list(stored.changed(np.array([31, 96]), lambda ids: np.full((len(ids), 16), 7, np.uint8)))
    assert [isinstance(piece, np.ndarray) for piece in pieces] == [True, False, False, True]
    assert [len(piece) for piece in pieces] == [32, 32, 32, 4]
    assert (pieces[0][31] == 7).all()  # type: ignore[index]
    assert not (pieces[0][:31] == 7).all(axis=1).any()  # type: ignore[index]


@pytest.mark.parametrize("kind", NOT_STORED)
def test_an_index_without_such_a_store_is_opened_by_others(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    index = make(unit_rows(300), kind)
    index.add(unit_rows(300))
    assert open_stored(write(index, tmp_path / "a.index")) is None


def test_a_file_of_another_length_is_not_trusted(tmp_path: Path, unit_rows: Rows) -> None:
    index = make(unit_rows(100), "SQ8")
    index.add(unit_rows(100))
    path = Path(write(index, tmp_path / "a.index"))
    path.write_bytes(path.read_bytes() + b"more")
    assert open_stored(str(path)) is None


@pytest.mark.parametrize("kind", [kind for kind in STORED if "HNSW" not in kind])
def test_merged_parts_are_the_file_that_merging_in_memory_gives(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    rows = unit_rows(150)
    empty = make(rows, kind)
    names, parts = ["a.index", "b.index", "c.index"], np.split(rows, [40, 100])
    for name, some in zip(names, parts, strict=True):
        part = faiss.clone_index(empty)
        part.add(some)
        write(part, tmp_path / name)
    whole = faiss.read_index(str(tmp_path / "a.index"))
    for name, start in (("b.index", 40), ("c.index", 100)):
        part = faiss.read_index(str(tmp_path / name))
        merge_into(whole, part, start)
    assert merge_in_memory(Folder(str(tmp_path)), names, [0, 40, 100], tmp_path / "merged.index") == 150
    assert (tmp_path / "merged.index").read_bytes() == faiss.serialize_index(whole).tobytes()
    stored = open_stored(str(tmp_path / "merged.index"))
    assert isinstance(stored, StoredFile)
