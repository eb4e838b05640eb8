"""How faiss lays out inverted lists in a file: as arrays, or packed in blocks of 32 rows for fast scan.

Arrays begin with the number of rows of each list; then come, list after list, codes and ids. A list of blocks is the
number of its rows, their ids, the number of its bytes, and its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.index.building.block_lists import spread
from clip_retrieval.index.planning.costs import ID_BYTES
from clip_retrieval.search.outlines import ARRAYS, BLOCKS, WORD, in_words
from clip_retrieval.search.packed_codes import Bytes, Packing, find_packing

CODES_AT_ONCE = 1 << 19  # bytes of codes that stay in the processor's cache while they are packed

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """The rows of one list in one file."""

    codes: Bytes  # [n, bytes], or blocks [b, bytes]
    ids: Ids  # [n]
    order: Ids | None = None  # places of the rows that stay, in their new order; None: all of them

    @property
    def kept_ids(self) -> Ids:
        return self.ids if self.order is None else self.ids[self.order]

    def count_untouched(self) -> int:
        """Return how many rows at the beginning keep their place."""
        if self.order is None:
            return len(self.ids)
        moved = np.flatnonzero(self.order != np.arange(len(self.order)))
        return int(moved[0]) if len(moved) else len(self.order)


class Layout(Protocol):
    """The format of lists of one shape in a file."""

    @property
    def name(self) -> bytes: ...

    @property
    def row_bytes(self) -> int:
        """Bytes of a row and its id, without padding."""

    def list_bytes(self, sizes: Ids) -> Ids:
        """Return the bytes of lists with these numbers of rows."""

    def head(self, sizes: Ids) -> bytes:
        """Return the bytes between the name and the first list."""

    def ids_within(self, sizes: Ids) -> Ids:
        """Return where the ids begin in each list."""

    def split(self, raw: Bytes, sizes: Sequence[int]) -> Iterator[tuple[Bytes, Ids]] | None:
        """Return codes and ids of neighboring lists; None if they have other numbers of rows."""

    def write(self, target: IO[bytes], lists: Sequence[Sequence[Piece]]) -> None:
        """Write lists, each joined from some pieces."""


@dataclass(frozen=True)
class ArrayLayout:
    """Lists of plain codes."""

    code_size: int
    name: bytes = ARRAYS

    @property
    def row_bytes(self) -> int:
        return self.code_size + ID_BYTES

    def list_bytes(self, sizes: Ids) -> Ids:
        return sizes * self.row_bytes

    def ids_within(self, sizes: Ids) -> Ids:
        return sizes * self.code_size

    def head(self, sizes: Ids) -> bytes:
        used = np.flatnonzero(sizes)
        is_full = len(used) > len(sizes) // 2
        table = sizes if is_full else np.ravel(np.column_stack([used, sizes[used]]))
        shape = in_words([len(sizes), self.code_size])
        return b"".join([shape, b"full" if is_full else b"sprs", in_words([len(table)]), in_words(table)])

    def split(self, raw: Bytes, sizes: Sequence[int]) -> Iterator[tuple[Bytes, Ids]] | None:
        return self.cut(raw, sizes)

    def cut(self, raw: Bytes, sizes: Sequence[int]) -> Iterator[tuple[Bytes, Ids]]:
        place = 0
        for count in sizes:
            middle, end = place + count * self.code_size, place + count * self.row_bytes
            yield raw[place:middle].reshape(count, self.code_size), raw[middle:end].view(np.int64)
            place = end

    def write(self, target: IO[bytes], lists: Sequence[Sequence[Piece]]) -> None:
        for pieces in lists:
            for piece in pieces:
                codes = piece.codes if piece.order is None else piece.codes[piece.order]
                if codes.size:
                    target.write(codes.data)
            target.writelines(np.ascontiguousarray(piece.kept_ids).data for piece in pieces)


@dataclass(frozen=True)
class BlockLayout:
    """Lists of 4-bit codes in blocks: only rows that change their place are unpacked and packed again."""

    packing: Packing
    name: bytes = BLOCKS

    @property
    def row_bytes(self) -> int:
        return self.packing.code_size + ID_BYTES

    def list_bytes(self, sizes: Ids) -> Ids:
        return 2 * WORD + sizes * ID_BYTES + self.count_blocks(sizes) * self.packing.block_size

    def ids_within(self, sizes: Ids) -> Ids:
        return np.full_like(sizes, WORD)

    def count_blocks(self, rows: Ids) -> Ids:
        return -(-rows // self.packing.rows)

    def head(self, sizes: Ids) -> bytes:
        """Return the shape as faiss writes it: in a list of blocks, a row has no size of its own."""
        return in_words([len(sizes), -1, self.packing.rows, self.packing.block_size])

    def split(self, raw: Bytes, sizes: Sequence[int]) -> Iterator[tuple[Bytes, Ids]] | None:
        lengths = self.list_bytes(np.asarray(sizes, np.int64))
        blocks = self.count_blocks(np.asarray(sizes, np.int64)) * self.packing.block_size
        ends = np.cumsum(lengths)
        said = np.column_stack([words_at(raw, ends - lengths), words_at(raw, ends - blocks - WORD)])
        if not np.array_equal(said, np.column_stack([sizes, blocks])):
            return None
        return self.cut(raw, sizes, ends - blocks, ends)

    def cut(self, raw: Bytes, sizes: Sequence[int], starts: Ids, ends: Ids) -> Iterator[tuple[Bytes, Ids]]:
        for count, start, end in zip(sizes, starts.tolist(), ends.tolist(), strict=True):
            ids = raw[start - WORD - count * ID_BYTES : start - WORD]
            yield raw[start:end].reshape(-1, self.packing.block_size), ids.view(np.int64)

    def write(self, target: IO[bytes], lists: Sequence[Sequence[Piece]]) -> None:
        rows = np.array([sum(len(piece.ids) for piece in pieces) for pieces in lists])
        group = np.cumsum(rows + self.packing.rows) * self.packing.code_size // CODES_AT_ONCE
        for numbers in np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1):
            self.write_some([lists[number] for number in numbers.tolist()], target)

    def write_some(self, lists: Sequence[Sequence[Piece]], target: IO[bytes]) -> None:
        """Write a few thousand rows; pack all moved ones at once: a call of NumPy takes longer than a short list."""
        untouched = [self.untouched_blocks(pieces) for pieces in lists]
        packed = self.pack(
            [move(pieces, len(same), self.packing.rows) for pieces, same in zip(lists, untouched, strict=True)]
        )
        for pieces, same, moved in zip(lists, untouched, packed, strict=True):
            ids = [np.ascontiguousarray(piece.kept_ids) for piece in pieces]
            target.write(in_words([sum(map(len, ids))]))
            target.writelines(some.data for some in ids)
            target.write(in_words([same.size + moved.size]))
            target.writelines(blocks.data for blocks in (same, moved) if blocks.size)

    def untouched_blocks(self, pieces: Sequence[Piece]) -> Bytes:
        """Return the first blocks of a list, which do not change, including the last one if nothing follows it."""
        first, *others = pieces
        if first.order is None and not any(len(piece.ids) for piece in others):
            return first.codes
        return first.codes[: first.count_untouched() // self.packing.rows]

    def pack(self, lists: Sequence[Sequence[tuple[Bytes, Ids]]]) -> list[Bytes]:
        """Return the blocks of lists, each joined from some places of some blocks."""
        moved = [(blocks, places) for pieces in lists for blocks, places in pieces]
        if not moved:
            return [np.empty((0, self.packing.block_size), np.uint8) for _ in lists]
        starts = np.cumsum([0, *(len(blocks) * self.packing.rows for blocks, _ in moved)]).tolist()
        codes = self.packing.unpack(np.concatenate([blocks for blocks, _ in moved]))
        codes = codes[np.concatenate([places + start for (_, places), start in zip(moved, starts, strict=False)])]
        counts = np.array([sum(len(places) for _, places in pieces) for pieces in lists])
        room = self.count_blocks(counts) * self.packing.rows
        filled = np.zeros((int(room.sum()), self.packing.code_size), np.uint8)
        filled[spread(counts, room)] = codes
        return np.split(self.packing.pack(filled), np.cumsum(room // self.packing.rows)[:-1])


def move(pieces: Sequence[Piece], same: int, rows: int) -> list[tuple[Bytes, Ids]]:
    """Return the blocks of a list after the first, unchanged ones, and the places in them that are kept."""
    found = []
    for piece, blocks in zip(pieces, [same] + [0] * (len(pieces) - 1), strict=True):
        places = np.arange(len(piece.ids)) if piece.order is None else piece.order
        if len(left := places[blocks * rows :]):
            found.append((piece.codes[blocks:], left - blocks * rows))
    return found


def layout_of(lists: Any) -> Layout:
    """Return how faiss writes some inverted lists."""
    if isinstance(lists, faiss.BlockInvertedLists):
        rows = int(lists.packer.nvec)
        return BlockLayout(find_packing(2 * int(lists.packer.block_size) // rows, rows))
    return ArrayLayout(int(lists.code_size))


def words_at(raw: Bytes, places: Ids) -> Ids:
    """Return the words that begin at some places of bytes."""
    words: Ids = raw[places[:, None] + np.arange(WORD)].view("<i8")[:, 0]
    return words
