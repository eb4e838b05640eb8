"""Opens a faiss file of inverted lists without their rows, to learn its kind and how many rows each list has.

faiss maps lists in arrays, but reads fast-scan lists into memory. So it is told that all lists are empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.files import BYTES_AT_ONCE, LISTS_FIRST, map_file

ARRAYS, BLOCKS = b"ilar", b"ilbl"  # faiss's names of lists in arrays, and in blocks for fast scan
WORD = 8  # bytes of a number, and of an id

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Outline:
    """An index without the rows of its lists, and how many there are in each."""

    index: Any
    sizes: Ids


def open_outline(path: str) -> Outline | None:
    """Open a file without its lists; None if it is of another kind. RuntimeError if it is not a faiss index."""
    with Path(path).open("rb") as file:
        if not file.read(4).startswith(LISTS_FIRST):
            return None
        file.seek(0)
        reader = EmptyLists(file)
        index = faiss.read_index(faiss.PyCallbackIOReader(reader.read, BYTES_AT_ONCE))
    return None if reader.sizes is None else Outline(index, reader.sizes)


def open_to_describe(path: str) -> Any:
    """Open a file whose rows are not needed: without its lists, or mapped if it has other lists or none."""
    try:
        outline = open_outline(path)
    except RuntimeError:  # lists in a separate file, or a damaged file, which is reported below
        outline = None
    if outline is not None:
        return outline.index
    with Path(path).open("rb") as file:
        begin = file.read(4)
    return map_file(path, begin)


class EmptyLists:
    """Reads a faiss file as if its inverted lists were empty, and notes how many rows they have."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.file_bytes = os.fstat(file.fileno()).st_size
        self.sizes: Ids | None = None  # rows of each list, once the lists were skipped
        self.answers: Iterator[bytes] = iter(())  # to faiss's next reads, if they differ from the file

    def read(self, size: int) -> bytes:
        """Return the next bytes; raises RuntimeError if lists are longer than the file."""
        answer = next(self.answers, None)
        if answer is not None:
            return answer
        piece = self.file.read(size)
        if piece == ARRAYS:
            self.answers = self.pass_arrays()
        elif piece == BLOCKS:
            self.answers = self.pass_blocks()
        return piece

    def pass_arrays(self) -> Iterator[bytes]:
        list_count, code_size = self.count(), self.count()
        is_full = self.file.read(4) == b"full"
        table = self.words(self.count())
        self.sizes = table if is_full else self.spread_table(table, list_count)
        yield from (in_words([list_count]), in_words([code_size]), b"sprs", in_words([0]))
        self.file.seek(int(self.sizes.sum()) * (code_size + WORD), os.SEEK_CUR)

    def spread_table(self, table: Ids, list_count: int) -> Ids:
        numbers, counts = table[::2], table[1::2]
        if len(numbers) != len(counts) or numbers.max(initial=0) >= list_count:
            raise RuntimeError("its lists are damaged")
        sizes = np.zeros(list_count, np.int64)
        sizes[numbers] = counts
        return sizes

    def pass_blocks(self) -> Iterator[bytes]:
        list_count = self.count()
        yield in_words([list_count])
        yield from (in_words([word]) for word in self.words(3).tolist())
        self.sizes = sizes = np.zeros(list_count, np.int64)
        for number in range(list_count):
            sizes[number] = self.count()
            self.file.seek(WORD * int(sizes[number]), os.SEEK_CUR)
            yield in_words([0])
            self.file.seek(self.count(), os.SEEK_CUR)
            yield in_words([0])

    def count(self) -> int:
        """Return the next word, a count of things in the file."""
        (count,) = self.words(1).tolist()
        if not 0 <= count <= self.file_bytes:
            raise RuntimeError("its lists are damaged")
        return int(count)

    def words(self, count: int) -> Ids:
        raw = self.file.read(min(WORD * count, self.file_bytes))
        if len(raw) < WORD * count:
            raise RuntimeError("the file ends within its lists")
        return np.frombuffer(raw, "<i8")


def in_words(values: Sequence[int] | Ids) -> bytes:
    return np.asarray(values, "<i8").tobytes()
