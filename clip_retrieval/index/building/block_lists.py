"""Edits faiss's lists of 4-bit codes, packed in blocks of 32 rows, around two bugs of faiss 1.13.

faiss writes past the end of a list whose last block is full when more is merged into it
(BlockInvertedLists::add_entries), and leaves the codes of removed rows behind, which the next ones are or-ed into.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.packed_codes import Bytes, Packing, view_blocks

ROWS_AT_ONCE = 16_384  # rows whose codes stay in the processor's cache while they are packed

Ids = NDArray[np.int64]


def merge_lists(lists: Any, others: Any, first_id: int) -> None:
    """Append the rows of `others`, adding `first_id` to their ids; both are BlockInvertedLists of one shape.

    Many lists are packed at once: for a short one, a call of NumPy takes longer than its rows.
    """
    packing = Packing(lists.packer)
    held, coming = list_sizes(lists), list_sizes(others)
    group = np.cumsum(coming + packing.rows) // ROWS_AT_ONCE
    for numbers in np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1):
        some = numbers[coming[numbers] > 0]
        joined = join_blocks(lists, others, some[held[some] % packing.rows > 0], packing)
        for number in some.tolist():
            count, before = int(coming[number]), int(held[number])
            blocks = joined.get(number)
            if blocks is None:
                blocks = blocks_at(others, number, count, packing)
            lists.resize(number, before + count)
            ids_at(lists, number, before + count)[before:] = ids_at(others, number, count) + first_id
            blocks_at(lists, number, before + count, packing)[before // packing.rows :] = blocks


def join_blocks(lists: Any, others: Any, numbers: Ids, packing: Packing) -> dict[int, Bytes]:
    """Return by list the blocks that replace its last, half-full one: its rows, then the new rows."""
    if not len(numbers):
        return {}
    held = np.array([lists.list_size(number) for number in numbers.tolist()], np.int64)
    coming = np.array([others.list_size(number) for number in numbers.tolist()], np.int64)
    pairs = zip(numbers.tolist(), held.tolist(), coming.tolist(), strict=True)
    pieces = [
        blocks
        for number, before, count in pairs
        for blocks in (blocks_at(lists, number, before, packing)[-1:], blocks_at(others, number, count, packing))
    ]
    rows = np.ravel(np.column_stack([held % packing.rows, coming]))  # of each piece
    capacity = -(-rows // packing.rows) * packing.rows
    codes = packing.unpack(np.concatenate(pieces))[spread(rows, capacity)]
    together = rows.reshape(-1, 2).sum(axis=1)
    room = -(-together // packing.rows) * packing.rows
    filled = np.zeros((int(room.sum()), packing.code_size), np.uint8)
    filled[spread(together, room)] = codes
    packed = np.split(packing.pack(filled), np.cumsum(room // packing.rows)[:-1])
    return dict(zip(numbers.tolist(), packed, strict=True))


def spread(counts: Ids, capacities: Ids) -> Ids:
    """Return the places of rows in runs of some capacity, of which only the first few are taken."""
    starts = np.cumsum(capacities) - capacities
    firsts = np.cumsum(counts) - counts
    places: Ids = np.arange(int(counts.sum())) + np.repeat(starts - firsts, counts)
    return places


def list_sizes(lists: Any) -> Ids:
    return np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)


def clear_tails(lists: Any) -> None:
    """Zero the unused slots of each list's last block."""
    packing = Packing(lists.packer)
    for number in range(lists.nlist):
        tail = int(lists.list_size(number)) % packing.rows
        if tail:
            last = blocks_of(lists, number)[-1:]
            last[:] = packing.pack(packing.unpack(last)[:tail])


def blocks_of(lists: Any, number: int) -> Bytes:
    """Return a view of a list's blocks [b, bytes]; invalid once the list's length changes."""
    return view_blocks(lists, number, -(-int(lists.list_size(number)) // lists.packer.nvec), lists.packer.block_size)


def blocks_at(lists: Any, number: int, count: int, packing: Packing) -> Bytes:
    """Return the same of a list whose rows are counted already."""
    return view_blocks(lists, number, -(-count // packing.rows), packing.block_size)


def ids_of(lists: Any, number: int) -> Ids:
    """Return a view of a list's ids [n]."""
    return ids_at(lists, number, int(lists.list_size(number)))


def ids_at(lists: Any, number: int, count: int) -> Ids:
    """Return the same of a list whose rows are counted already."""
    ids: Ids = faiss.rev_swig_ptr(lists.get_ids(number), count) if count else np.empty(0, np.int64)
    return ids
