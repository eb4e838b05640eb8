"""Edits faiss's lists of 4-bit codes, packed in blocks of 32 rows, around two bugs of faiss 1.13.

faiss writes past the end of a list whose last block is full when more is merged into it
(BlockInvertedLists::add_entries), and leaves the codes of removed rows behind, which the next ones are or-ed into.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 1, 2  # marks of the two halves of a byte
ROWS_AT_ONCE = 16_384  # rows whose codes stay in the processor's cache while they are packed

Bytes = NDArray[np.uint8]
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
    """Return by list the blocks that take the place of its last, half-full one: its rows, then those to come."""
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
    """Return the places of rows that lie in runs of some capacity, of which the first few of each are taken."""
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


def view_blocks(lists: Any, number: int, blocks: int, block_size: int) -> Bytes:
    if not blocks:
        return np.empty((0, block_size), np.uint8)
    view: Bytes = faiss.rev_swig_ptr(lists.get_codes(number), blocks * block_size)
    return view.reshape(blocks, block_size)


def ids_of(lists: Any, number: int) -> Ids:
    """Return a view of a list's ids [n]."""
    return ids_at(lists, number, int(lists.list_size(number)))


def ids_at(lists: Any, number: int, count: int) -> Ids:
    """Return the same of a list whose rows are counted already."""
    ids: Ids = faiss.rev_swig_ptr(lists.get_ids(number), count) if count else np.empty(0, np.int64)
    return ids


class Packing:
    """The position in a block of each 4-bit code of each row, probed by calling faiss's packer."""

    def __init__(self, packer: Any) -> None:
        self.rows, self.code_size, self.block_size = int(packer.nvec), int(packer.code_size), int(packer.block_size)
        places = np.empty((self.rows, self.code_size, 2), np.int64)
        for row in range(self.rows):
            for byte in range(self.code_size):
                code, block = np.zeros(self.code_size, np.uint8), np.zeros((1, self.block_size), np.uint8)
                code[byte] = LOW | HIGH << 4
                packer.pack_1(code, row, block)
                marked = split(block)[0, :-1]
                places[row, byte] = (marked == LOW).argmax(), (marked == HIGH).argmax()
        self.places = places.ravel()
        # Where each half of a block comes from; from the zero behind the codes where no row is meant.
        self.homes = np.full(2 * self.block_size, len(self.places), np.int64)
        self.homes[self.places] = np.arange(len(self.places))

    def unpack(self, blocks: Bytes) -> Bytes:
        """Return the codes [32 b, bytes] of blocks [b, bytes]."""
        halves = split(blocks).take(self.places, axis=1)
        return join(halves).reshape(-1, self.code_size)

    def pack(self, codes: Bytes) -> Bytes:
        """Return the blocks [b, bytes] of codes [n, bytes], padded with zeros."""
        count = -(-len(codes) // self.rows)
        if len(codes) % self.rows:
            codes = np.concatenate([codes, np.zeros((count * self.rows - len(codes), self.code_size), np.uint8)])
        halves = split(codes.reshape(count, self.rows * self.code_size))
        return join(halves.take(self.homes, axis=1))


def split(values: Bytes) -> Bytes:
    """Return the halves [n, 2 * bytes + 1] of bytes [n, bytes], the lower one first, and a zero at the end."""
    halves = np.zeros((len(values), 2 * values.shape[1] + 1), np.uint8)
    np.bitwise_and(values, 0xF, out=halves[:, :-1:2])
    np.right_shift(values, 4, out=halves[:, 1:-1:2])
    return halves


def join(halves: Bytes) -> Bytes:
    """Return the bytes [n, bytes] of halves [n, 2 * bytes]."""
    joined: Bytes = np.left_shift(halves[:, 1::2], 4)
    joined |= halves[:, ::2]
    return joined
