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

Bytes = NDArray[np.uint8]
Ids = NDArray[np.int64]


def merge_lists(lists: Any, others: Any, first_id: int) -> None:
    """Append the rows of `others`, adding `first_id` to their ids; both are BlockInvertedLists of one shape."""
    packing = Packing(lists.packer)
    for number in range(lists.nlist):
        count, held = int(others.list_size(number)), int(lists.list_size(number))
        if not count:
            continue
        tail = held % packing.rows
        coming = blocks_of(others, number)
        if tail:
            last = packing.unpack(blocks_of(lists, number)[-1:])[:tail]
            coming = packing.pack(np.concatenate([last, packing.unpack(coming)[:count]]))
        lists.resize(number, held + count)
        ids_of(lists, number)[held:] = ids_of(others, number) + first_id
        blocks_of(lists, number)[held // packing.rows :] = coming


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
    packer = lists.packer
    count = -(-int(lists.list_size(number)) // packer.nvec)
    if not count:
        return np.empty((0, packer.block_size), np.uint8)
    blocks: Bytes = faiss.rev_swig_ptr(lists.get_codes(number), count * packer.block_size)
    return blocks.reshape(count, packer.block_size)


def ids_of(lists: Any, number: int) -> Ids:
    """Return a view of a list's ids [n]."""
    count = int(lists.list_size(number))
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
                marked = split(block)[0]
                places[row, byte] = (marked == LOW).argmax(), (marked == HIGH).argmax()
        self.places = places.ravel()

    def unpack(self, blocks: Bytes) -> Bytes:
        """Return the codes [32 b, bytes] of blocks [b, bytes]."""
        halves = split(blocks)[:, self.places].reshape(-1, 2)
        return join(halves).reshape(-1, self.code_size)

    def pack(self, codes: Bytes) -> Bytes:
        """Return the blocks [b, bytes] of codes [n, bytes], padded with zeros."""
        count = -(-len(codes) // self.rows)
        filled = np.zeros((count * self.rows, self.code_size), np.uint8)
        filled[: len(codes)] = codes
        halves = np.zeros((count, 2 * self.block_size), np.uint8)
        halves[:, self.places] = split(filled).reshape(count, -1)
        return join(halves.reshape(-1, 2)).reshape(count, self.block_size)


def split(values: Bytes) -> Bytes:
    """Return the halves [n, 2 * bytes] of bytes [n, bytes], the lower one first."""
    halves: Bytes = np.stack([values & 0xF, values >> 4], axis=-1).reshape(len(values), -1)
    return halves


def join(halves: Bytes) -> Bytes:
    """Return the bytes [n] of pairs of halves [n, 2]."""
    return (halves[:, 0] | halves[:, 1] << 4).astype(np.uint8)
