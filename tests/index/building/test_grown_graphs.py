"""Graphs that grow in the room they were opened with: nothing of them is copied, and the file is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.index.building.grown_graphs import make_room, open_with_room
from tests.index.building.conftest import make, write

Rows = Callable[..., NDArray[np.float32]]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["HNSW8,Flat", "HNSW4,SQfp16", "HNSW8,PQ4x4np"])
@pytest.mark.parametrize("added", [1, 700])
def test_a_graph_grows_where_it_lies(tmp_path: Path, unit_rows: Rows, kind: str, added: int) -> None:
    rows = unit_rows(1000 + added)
    index = make(rows[:1000], kind)
    index.add(rows[:1000])
    path = write(index, tmp_path / "a.index")
    index = faiss.read_index(path)  # whose generator of levels begins anew
    grown = open_with_room(path, added)
    arrays = faiss.downcast_index(grown.storage).codes, grown.hnsw.neighbors
    before = [int(array.data()) for array in arrays]
    for some in np.array_split(rows[1000:], 3) if added > 3 else [rows[1000:]]:
        grown.add(some)
        index.add(some)
    assert [int(array.data()) for array in arrays] == before
    assert faiss.serialize_index(grown).tobytes() == faiss.serialize_index(index).tobytes()


def test_a_new_graph_has_room_for_all_its_rows(unit_rows: Rows) -> None:
    rows = unit_rows(900)
    index, plain = make(rows, "HNSW8,SQfp16"), make(rows, "HNSW8,SQfp16")
    make_room(index, 900)
    arrays = faiss.downcast_index(index.storage).codes, index.hnsw.neighbors
    before = [int(array.data()) for array in arrays]
    for some in np.split(rows, 3):
        index.add(some)
        plain.add(some)
    assert [int(array.data()) for array in arrays] == before
    assert faiss.serialize_index(index).tobytes() == faiss.serialize_index(plain).tobytes()


@pytest.mark.parametrize("kind", ["Flat", "IVF4,SQ8", "IDMap,HNSW8"])
def test_what_is_no_such_graph_is_read(tmp_path: Path, unit_rows: Rows, kind: str) -> None:
    index = make(unit_rows(300), kind)
    index.add_with_ids(unit_rows(100), np.arange(100)) if "IDMap" in kind else index.add(unit_rows(100))
    opened = open_with_room(write(index, tmp_path / "a.index"), 10)
    assert faiss.serialize_index(opened).tobytes() == faiss.serialize_index(index).tobytes()
