"""4-bit codes of fast-scan lists, which faiss packs in blocks of 32 rows: their places, and the rows they encode.

faiss 1.13 ends the process when it is asked for a row of such lists from a file.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

CODE_BITS = 4
LOW, HIGH = 1, 2  # marks of the two halves of a byte
ROWS_AT_ONCE = 4_096  # rows that are decoded at a time: for each, a block is unpacked

Bytes = NDArray[np.uint8]
Ids = NDArray[np.int64]


def decode_packed(index: Any, numbers: Ids, offsets: Ids) -> NDArray[np.float32]:
    """Return the rows [n, d] of an IVF index of 4-bit product codes by their lists and places in them."""
    rows = np.empty((len(numbers), index.d), np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        rows[some] = index.pq.decode(read_codes(index.invlists, numbers[some], offsets[some]))
    if index.by_residual:
        centroids, which = np.unique(numbers, return_inverse=True)
        rows += index.quantizer.reconstruct_batch(centroids)[which]
    return rows


def read_codes(lists: Any, numbers: Ids, offsets: Ids) -> Bytes:
    """Return the codes [n, bytes] of rows in BlockInvertedLists."""
    lists = faiss.downcast_InvertedLists(lists)
    packing = find_packing(2 * int(lists.block_size) // int(lists.n_per_block), int(lists.n_per_block))
    places, within = offsets // packing.rows, offsets % packing.rows
    views = {
        number: view_blocks(lists, number, -(-int(lists.list_size(number)) // packing.rows), packing.block_size)
        for number in np.unique(numbers).tolist()
    }
    pairs = zip(numbers.tolist(), places.tolist(), strict=True)
    blocks = np.stack([views[number][place] for number, place in pairs])
    halves = np.take_along_axis(split(blocks), packing.places.reshape(packing.rows, -1)[within], axis=1)
    return join(halves)


def view_blocks(lists: Any, number: int, blocks: int, block_size: int) -> Bytes:
    if not blocks:
        return np.empty((0, block_size), np.uint8)
    view: Bytes = faiss.rev_swig_ptr(lists.get_codes(number), blocks * block_size)
    return view.reshape(blocks, block_size)


@cache
def find_packing(codes: int, rows: int) -> Packing:
    """Return how faiss packs blocks of some rows of 4-bit codes; finding out takes up to a second, for each part."""
    index = faiss.IndexPQFastScan(codes, codes, CODE_BITS, faiss.METRIC_INNER_PRODUCT, rows)  # no dimension to spare
    return Packing(index.get_CodePacker())


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
        # The source of each half of a block; the zero after the codes if there is no row.
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
