"""Lists of fast scan hold just the rows that were merged into them, however long they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.index.building.block_lists import blocks_of, clear_tails, ids_of
from clip_retrieval.index.building.parts import merge_into
from clip_retrieval.search.packed_codes import Packing

Rows = Callable[..., NDArray[np.float32]]


def contents(index: Any) -> list[dict[int, bytes]]:
    """Return the code of each row by its id, of each list, as faiss itself unpacks it."""
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    found = []
    for number in range(lists.nlist):
        blocks = blocks_of(lists, number)
        ids = ids_of(lists, number).tolist()
        found.append({row: bytes(lists.packer.unpack_1(blocks, place)) for place, row in enumerate(ids)})
    return found


pytestmark = pytest.mark.usefixtures("one_thread")


def make_empty(rows: NDArray[np.float32], key: str) -> Any:
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    return index


@pytest.mark.parametrize("key", ["IVF1,PQ4x4fs", "IVF1,PQ8x4fs", "IVF3,PQ4x4fs", "RR16,IVF2,PQ4x4fs"])
@pytest.mark.parametrize(
    "sizes", [(64, 64, 64), (128, 1, 127), (1, 63, 64, 500), (31, 1, 32, 33), (7, 5, 3), (256, 256), (0, 5, 0, 40)]
)
def test_a_list_holds_what_was_merged_into_it(unit_rows: Rows, key: str, sizes: tuple[int, ...]) -> None:
    """Lists of a multiple of 64 rows are those that faiss writes beyond: a block of PQ4x4 has 64 bytes."""
    rows = unit_rows(1000)
    empty = make_empty(rows, key)
    whole, merged, start = faiss.clone_index(empty), faiss.clone_index(empty), 0
    for size in sizes:
        part = faiss.clone_index(empty)
        part.add(rows[start : start + size])
        merge_into(merged, part, start)
        start += size
    whole.add(rows[:start])

    assert merged.ntotal == start
    assert contents(merged) == contents(whole)
    assert faiss.serialize_index(merged).tobytes() == faiss.serialize_index(whole).tobytes()


def test_more_is_added_behind_what_was_merged(unit_rows: Rows) -> None:
    rows = unit_rows(300)
    empty = make_empty(rows, "IVF2,PQ4x4fs")
    whole, merged, part = (faiss.clone_index(empty) for _ in range(3))
    part.add(rows[:100])
    merge_into(merged, part, 0)
    merged.add_with_ids(rows[100:], np.arange(100, 300))
    whole.add(rows)
    assert contents(merged) == contents(whole)


@pytest.mark.parametrize("key", ["IVF1,PQ4x4fs", "IVF1,PQ5x4fs", "IVF1,PQ20x4fs"])
def test_codes_are_packed_as_faiss_does(key: str) -> None:
    index = faiss.index_factory(20, key)
    packer = faiss.downcast_InvertedLists(index.invlists).packer
    codes = np.random.default_rng(0).integers(0, 256, (70, packer.code_size), np.uint8)
    if key == "IVF1,PQ5x4fs":
        codes[:, -1] &= 0xF  # a half byte that no code has
    blocks = np.zeros((3, packer.block_size), np.uint8)
    for place, code in enumerate(codes):
        packer.pack_1(code, place, blocks)
    assert np.array_equal(Packing(packer).pack(codes), blocks)
    assert np.array_equal(Packing(packer).unpack(blocks)[:70], codes)


def test_places_that_hold_no_row_are_empty(unit_rows: Rows) -> None:
    index = make_empty(unit_rows(300), "IVF1,PQ4x4fs")
    index.add(unit_rows(40))
    lists = faiss.downcast_InvertedLists(index.invlists)
    before, codes = contents(index)[0], Packing(lists.packer).unpack(blocks_of(lists, 0))
    lists.resize(0, 33)  # which leaves the codes of seven rows behind
    clear_tails(lists)
    assert contents(index) == [dict(list(before.items())[:33])]
    assert np.array_equal(Packing(lists.packer).unpack(blocks_of(lists, 0)), [*codes[:33], *np.zeros((31, 2))])
