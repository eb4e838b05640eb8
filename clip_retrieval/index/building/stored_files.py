"""Opens an index file without its store, whose codes stay in the file: changes and merges stream them.

`code_stores.py` writes the store of a new index in the same way: building, updating and merging hold only the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.index.building.code_stores import Codes, CodesInFile, find_store, innermost, put_mark
from clip_retrieval.search.files import BYTES_AT_ONCE, LISTS_FIRST

ROWS_AT_ONCE = 16_384

Ids = NDArray[np.int64]
Encode = Callable[[Ids], NDArray[np.uint8]]  # ids [n] of changed rows to their new codes [n, bytes]


@dataclass(frozen=True)
class StoredFile:
    """An index whose store is empty, and the place of the store's codes in its file."""

    index: Any
    codes: CodesInFile

    def changed(self, ids: Ids, encode: Encode) -> Iterator[Codes]:
        """Yield all codes in order; the codes of the rows `ids` (sorted) are replaced."""
        row_bytes = self.codes.size // max(1, self.codes.row_count)
        for start in range(0, self.codes.row_count, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, self.codes.row_count - start)
            place = self.codes.start + start * row_bytes
            some = ids[np.searchsorted(ids, start) : np.searchsorted(ids, start + count)]
            if not len(some):
                yield CodesInFile(self.codes.path, place, count * row_bytes, count)
                continue
            block = np.fromfile(self.codes.path, np.uint8, count * row_bytes, offset=place).reshape(count, row_bytes)
            block[some - start] = encode(some)
            yield block


def open_stored(path: str) -> StoredFile | None:
    """Open an index file without its store; None if it has none, or is not as this faiss writes it.

    Memory holds its lists. Raises RuntimeError if the file is not a faiss index.
    """
    with Path(path).open("rb") as file:
        if file.read(4).startswith(LISTS_FIRST):  # only lists
            return None
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    store = find_store(index)
    if store is None:
        return None
    inner = innermost(store)
    row_count, size = int(inner.ntotal), int(inner.ntotal) * int(inner.code_size)
    inner.codes = faiss.IndexFlatIP(1).codes  # mapped until now
    take_lists(index)
    around = measure_around(index, inner)
    if around.before + size + around.after != Path(path).stat().st_size:
        return None
    return StoredFile(index, CodesInFile(path, around.before, size, row_count))


def take_lists(index: Any) -> None:
    """Copy mapped inverted lists into memory: faiss ends the process if a mapped list grows."""
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        return
    mapped = faiss.downcast_InvertedLists(lists.invlists)
    if isinstance(mapped, faiss.ArrayInvertedLists):
        owned = faiss.ArrayInvertedLists(lists.nlist, mapped.code_size)
        mapped.copy_subset_to(owned, faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, 0, np.iinfo(np.int64).max)
        lists.replace_invlists(owned, True)  # noqa: FBT003 -- faiss takes no keyword
        owned.this.disown()


@dataclass
class Around:
    """Counts the bytes that faiss writes before and after the mark that stands for the codes."""

    mark: bytes
    before: int = 0
    after: int = 0
    is_past: bool = False

    def write(self, piece: bytes) -> int:
        if piece == self.mark:
            self.is_past = True
        elif self.is_past:
            self.after += len(piece)
        else:
            self.before += len(piece)
        return len(piece)


def measure_around(index: Any, store: Any) -> Around:
    around = Around(put_mark(store))
    faiss.write_index(index, faiss.PyCallbackIOWriter(around.write, max(BYTES_AT_ONCE, len(around.mark))))
    store.codes.resize(0)
    return around
