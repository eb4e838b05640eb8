"""Changes and merges index files that consist only of inverted lists, from file to file.

faiss writes such an index as the trained part, and then list after list (`list_layouts.py`). Memory holds the trained
part, and some lists at a time. Graphs and lists in a separate file are written differently.
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
from clip_retrieval.index.building.list_layouts import Layout, Piece, layout_of
from clip_retrieval.index.building.parts import UNMERGED
from clip_retrieval.search.files import BYTES_AT_ONCE
from clip_retrieval.search.outlines import WORD, open_outline
from clip_retrieval.search.tree import list_nodes

BYTES_OF_BAND = 1 << 24  # of lists in memory at a time, but at least one list of all files

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ListedFile:
    """An index whose rows stay in its file, the offset of their ids, and the rows that are left out."""

    path: str
    index: Any  # as it was trained, without rows
    layout: Layout
    sizes: Ids  # rows of each list
    start: int  # place of the first list in the file
    first_id: int = 0
    removed: Ids = field(default_factory=lambda: np.empty(0, np.int64))  # in increasing order

    def kept_sizes(self) -> Ids:
        """Return how many rows of each list are left."""
        if not len(self.removed):
            return self.sizes
        return np.array([len(ids) - int(self.find_gone(ids).sum()) for ids in self.read_ids()], np.int64)

    def read_ids(self) -> Iterator[Ids]:
        """Yield the ids of each list, as the file has them."""
        lengths = self.layout.list_bytes(self.sizes)
        places = self.start + np.cumsum(lengths) - lengths + self.layout.ids_within(self.sizes)
        with Path(self.path).open("rb") as file:
            for place, count in zip(places.tolist(), self.sizes.tolist(), strict=True):
                file.seek(place)
                raw = file.read(count * WORD)
                if len(raw) < count * WORD:
                    raise self.is_changed()
                yield np.frombuffer(raw, np.int64)

    def is_changed(self) -> IndexBuildError:
        return IndexBuildError(f"{self.path} changed while the index was built; build it again")

    def read(self, band: range) -> list[Piece]:
        """Return the rows of neighboring lists; raises IndexBuildError if the file has changed."""
        lengths = self.layout.list_bytes(self.sizes[: band.stop])
        place, size = self.start + int(lengths[: band.start].sum()), int(lengths[band.start :].sum())
        raw = np.fromfile(self.path, np.uint8, size, offset=place)
        lists = self.layout.split(raw, self.sizes[band.start : band.stop].tolist()) if len(raw) == size else None
        if lists is None:
            raise self.is_changed()
        return [self.kept(codes, ids) for codes, ids in lists]

    def kept(self, codes: NDArray[np.uint8], ids: Ids) -> Piece:
        gone = self.find_gone(ids)
        return Piece(codes, ids + self.first_id if self.first_id else ids, order_without(gone) if gone.any() else None)

    def find_gone(self, ids: Ids) -> NDArray[np.bool_]:
        """Return which ids are removed."""
        if not len(self.removed):
            return np.zeros(len(ids), np.bool_)
        found: NDArray[np.bool_] = (
            self.removed[np.searchsorted(self.removed, ids).clip(max=len(self.removed) - 1)] == ids
        )
        return found


def order_without(gone: NDArray[np.bool_]) -> Ids:
    """Return the places of rows that stay, in the order that faiss leaves: the last ones fill the gaps."""
    count = len(gone) - int(gone.sum())
    places = np.arange(count)
    places[gone[:count]] = (count + np.flatnonzero(~gone[count:]))[::-1]
    return places


def open_listed(path: str) -> ListedFile | None:
    """Open an index file without its rows; None if it is not a file of lists, or not as this faiss writes them.

    Raises RuntimeError if the file is not a faiss index.
    """
    outline = open_outline(path)
    if outline is None or not is_listed(outline.index):
        return None
    lists = faiss.extract_index_ivf(outline.index)
    if lists.direct_map.type != faiss.DirectMap.NoMap:
        return None
    layout = layout_of(faiss.downcast_InvertedLists(lists.invlists))
    head = write_head(outline.index, layout, outline.sizes)
    with Path(path).open("rb") as file:
        is_like_ours = file.read(len(head)) == head
        size = os.fstat(file.fileno()).st_size
    found = ListedFile(path, outline.index, layout, outline.sizes, len(head))
    return found if is_like_ours and size == len(head) + int(layout.list_bytes(outline.sizes).sum()) else None


def is_listed(index: Any) -> bool:
    """Say whether an index consists only of lists that can be merged, with or without transformations before them."""
    *above, lists = list_nodes(index)
    return (
        isinstance(lists, faiss.IndexIVF)
        and not isinstance(lists, UNMERGED)
        and all(isinstance(node, faiss.IndexPreTransform) for node in above)
    )


def forget_rows(index: Any) -> None:
    """Empty the lists of an index, which were filled in memory."""
    lists = faiss.extract_index_ivf(index)
    if isinstance(faiss.downcast_InvertedLists(lists.invlists), faiss.BlockInvertedLists):
        lists.invlists.reset()
    else:  # which would keep their memory
        empty = faiss.ArrayInvertedLists(lists.nlist, lists.code_size)
        lists.replace_invlists(empty, True)  # noqa: FBT003 -- faiss takes no keyword
        empty.this.disown()
    count_rows(index, 0)


def count_rows(index: Any, row_count: int) -> None:
    for node in list_nodes(index):
        node.ntotal = row_count


def write_head(index: Any, layout: Layout, sizes: Ids) -> bytes:
    """Return what faiss writes before the first list of an index whose lists have these numbers of rows."""
    pieces: list[bytes] = []

    def take(piece: bytes) -> int:
        pieces.append(bytes(piece))
        return len(piece)

    count_rows(index, int(sizes.sum()))
    faiss.write_index(index, faiss.PyCallbackIOWriter(take, BYTES_AT_ONCE))
    count_rows(index, 0)
    until = len(pieces) - pieces[::-1].index(layout.name)
    return b"".join([*pieces[:until], layout.head(sizes)])


def cut_bands(lengths: Ids) -> Iterator[range]:
    """Yield ranges of neighboring lists that take BYTES_OF_BAND together, or of a single list."""
    group = np.cumsum(lengths) // BYTES_OF_BAND
    bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(lengths)]
    for start, stop in pairwise(bounds):
        yield range(start, stop)


def write_listed(files: Sequence[ListedFile], path: Path) -> int:
    """Write the rows of files that were trained together as one index; return how many there are.

    Raises OSError if writing fails.
    """
    layout = files[0].layout
    sizes = np.sum([file.kept_sizes() for file in files], axis=0)
    with path.open("wb") as target:
        target.write(write_head(files[0].index, layout, sizes))
        for band in cut_bands(np.sum([layout.list_bytes(file.sizes) for file in files], axis=0)):
            layout.write(target, list(zip(*(file.read(band) for file in files), strict=True)))
    return int(sizes.sum())
