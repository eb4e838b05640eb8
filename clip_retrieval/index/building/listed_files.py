"""Changes and merges index files that are nothing but inverted lists, from file to file.

faiss writes such an index as what was trained, the number of rows of each list, and then, list after list, the codes
and the ids of its rows. Memory holds what was trained, and some lists at a time. Graphs, lists of fast scan, which are
packed in blocks of 32 rows, and lists in a file of their own are not written like that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.block_lists import list_sizes
from clip_retrieval.index.planning.costs import ID_BYTES
from clip_retrieval.search.files import BYTES_AT_ONCE, LISTS_FIRST
from clip_retrieval.search.tree import list_nodes

BYTES_OF_BAND = 1 << 24  # of lists in memory at a time, but at least one list of all files
HEAD_OF_LISTS = b"ilar"  # faiss's name of lists in arrays

Ids = NDArray[np.int64]
Rows = tuple[NDArray[np.uint8], Ids]  # codes [n, bytes] and ids [n] of one list


@dataclass(frozen=True)
class ListedFile:
    """An index whose rows stay in its file, what is added to their ids, and those that are left out of it."""

    path: str
    index: Any  # as it was trained, without rows
    sizes: Ids  # rows of each list
    start: int  # place of the first list in the file
    first_id: int = 0
    removed: Ids = field(default_factory=lambda: np.empty(0, np.int64))  # in increasing order

    @property
    def code_size(self) -> int:
        return int(faiss.extract_index_ivf(self.index).code_size)

    @property
    def row_bytes(self) -> int:
        return self.code_size + ID_BYTES

    def kept_sizes(self) -> Ids:
        """Return how many rows of each list are left."""
        if not len(self.removed):
            return self.sizes
        bands = cut_bands(self.sizes, self.row_bytes)
        return np.array([len(ids) for band in bands for _, ids in self.read(band)], np.int64)

    def read(self, band: range) -> list[Rows]:
        """Return the rows of neighboring lists; raises IndexBuildError where the file is shorter than it was."""
        counts = self.sizes[band.start : band.stop].tolist()
        place = self.start + self.row_bytes * int(self.sizes[: band.start].sum())
        raw = np.fromfile(self.path, np.uint8, self.row_bytes * sum(counts), offset=place)
        if len(raw) < self.row_bytes * sum(counts):
            raise IndexBuildError(f"{self.path} changed while the index was built; build it again")
        found, place = [], 0
        for count in counts:
            middle, end = place + count * self.code_size, place + count * self.row_bytes
            found.append(self.kept(raw[place:middle].reshape(count, self.code_size), raw[middle:end].view(np.int64)))
            place = end
        return found

    def kept(self, codes: NDArray[np.uint8], ids: Ids) -> Rows:
        if len(self.removed) and len(ids):
            gone = self.removed[np.searchsorted(self.removed, ids).clip(max=len(self.removed) - 1)] == ids
            if gone.any():
                order = order_without(gone)
                codes, ids = codes[order], ids[order]
        return codes, ids + self.first_id if self.first_id else ids


def order_without(gone: NDArray[np.bool_]) -> Ids:
    """Return the places of rows that stay, in the order that faiss leaves: the last ones fill the gaps."""
    count = len(gone) - int(gone.sum())
    places = np.arange(count)
    places[gone[:count]] = (count + np.flatnonzero(~gone[count:]))[::-1]
    return places


def open_listed(path: str) -> ListedFile | None:
    """Open an index file without its rows; None if it is no file of lists, or unlike those that this faiss writes.

    Raises RuntimeError where the file is no faiss index.
    """
    with Path(path).open("rb") as file:
        if not file.read(4).startswith(LISTS_FIRST):
            return None
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    if not is_listed(index):
        return None
    lists = faiss.extract_index_ivf(index)
    mapped = faiss.downcast_InvertedLists(lists.invlists)
    if not isinstance(mapped, faiss.OnDiskInvertedLists) or lists.direct_map.type != faiss.DirectMap.NoMap:
        return None
    sizes = list_sizes(mapped)
    forget_rows(index)
    head = write_head(index, sizes)
    found = ListedFile(path, index, sizes, len(head))
    with Path(path).open("rb") as file:
        is_like_ours = file.read(len(head)) == head
        size = os.fstat(file.fileno()).st_size
    return found if is_like_ours and size == len(head) + found.row_bytes * int(sizes.sum()) else None


def is_listed(index: Any) -> bool:
    """Say whether an index is nothing but lists, below transformations or not, that are not packed for fast scan."""
    *above, lists = list_nodes(index)
    return (
        isinstance(lists, faiss.IndexIVF)
        and not isinstance(lists, faiss.IndexIVFFastScan)
        and all(isinstance(node, faiss.IndexPreTransform) for node in above)
    )


def forget_rows(index: Any) -> None:
    """Give an index of lists empty ones in memory, which rows can be added to."""
    lists = faiss.extract_index_ivf(index)
    empty = faiss.ArrayInvertedLists(lists.nlist, lists.code_size)
    lists.replace_invlists(empty, True)  # noqa: FBT003 -- faiss takes no keyword
    empty.this.disown()
    count_rows(index, 0)


def count_rows(index: Any, row_count: int) -> None:
    for node in list_nodes(index):
        node.ntotal = row_count


def write_head(index: Any, sizes: Ids) -> bytes:
    """Return what faiss writes before the first list of an index whose lists have these numbers of rows."""
    pieces: list[bytes] = []

    def take(piece: bytes) -> int:
        pieces.append(bytes(piece))
        return len(piece)

    count_rows(index, int(sizes.sum()))
    faiss.write_index(index, faiss.PyCallbackIOWriter(take, BYTES_AT_ONCE))
    count_rows(index, 0)
    until = len(pieces) - pieces[::-1].index(HEAD_OF_LISTS)
    used = np.flatnonzero(sizes)
    is_full = len(used) > len(sizes) // 2
    table = sizes if is_full else np.ravel(np.column_stack([used, sizes[used]]))
    shape = (len(sizes), faiss.extract_index_ivf(index).code_size)
    return b"".join(
        [*pieces[:until], in_words(shape), b"full" if is_full else b"sprs", in_words([len(table)]), in_words(table)]
    )


def in_words(values: Sequence[int] | Ids) -> bytes:
    return np.asarray(values, "<u8").tobytes()


def cut_bands(sizes: Ids, row_bytes: int) -> Iterator[range]:
    """Yield ranges of neighboring lists which take BYTES_OF_BAND together, or are a single one."""
    group = np.cumsum(sizes * row_bytes) // BYTES_OF_BAND
    bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(sizes)]
    for start, stop in pairwise(bounds):
        yield range(start, stop)


def write_listed(files: Sequence[ListedFile], path: Path) -> int:
    """Write the rows of files that were trained together as one index; return how many there are.

    Raises OSError where writing fails.
    """
    sizes = sum((file.kept_sizes() for file in files), start=np.zeros_like(files[0].sizes))
    with path.open("wb") as target:
        target.write(write_head(files[0].index, sizes))
        for band in cut_bands(sum((file.sizes for file in files), start=np.zeros_like(sizes)), files[0].row_bytes):
            for rows in zip(*(file.read(band) for file in files), strict=True):
                target.writelines(codes.data for codes, _ in rows if codes.size)
                target.writelines(np.ascontiguousarray(ids).data for _, ids in rows)
    return int(sizes.sum())
