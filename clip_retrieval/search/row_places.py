"""The place of each row in inverted lists: found once for an opened index, so reading a few rows needs no scan."""

from __future__ import annotations

from threading import Lock
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.search.packed_codes import decode_packed
from clip_retrieval.words import with_article

MOST_PLACED = 20_000_000  # rows: 160 MB; larger indices are scanned
LIST_SHIFT = 32  # a place is list number << 32 | offset in the list
OFFSET_MASK = (1 << LIST_SHIFT) - 1


class RowPlaces:
    """The places of one part's rows by id; -1 for ids that it does not hold.

    faiss's direct map is not used: making it would write into an index that other threads are searching.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.found: NDArray[np.int64] | None = None

    def find(self, index: Any) -> NDArray[np.int64] | None:
        """Return the places of all rows in an IVF index; None if that would take too much memory."""
        if index.ntotal > MOST_PLACED:
            return None
        with self.lock:
            if self.found is None:
                self.found = list_places(index)
            return self.found


def list_places(index: Any) -> NDArray[np.int64] | None:
    """Read the ids of all lists; None if they are too far apart for a table."""
    lists = index.invlists
    sizes = [lists.list_size(number) for number in range(index.nlist)]
    held = [faiss.rev_swig_ptr(lists.get_ids(number), size) for number, size in enumerate(sizes) if size]
    largest = max((int(ids.max()) for ids in held), default=-1)
    if largest >= MOST_PLACED:
        return None
    places = np.full(largest + 1, -1, np.int64)
    for number, ids in zip((number for number, size in enumerate(sizes) if size), held, strict=True):
        places[ids] = (number << LIST_SHIFT) + np.arange(len(ids))
    return places


def decode_placed(index: Any, ids: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows of an IVF index by id; zero rows for ids that it does not hold."""
    rows = np.zeros((len(ids), index.d), np.float32)
    inside = np.flatnonzero(ids < len(places))
    found = inside[places[ids[inside]] >= 0]
    there = places[ids[found]]
    rows[found] = decode_at(index, there >> LIST_SHIFT, there & OFFSET_MASK)
    return rows


def decode_at(index: Any, numbers: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows of an IVF index by their lists and places in them.

    Raises QueryError for fast-scan codes that are not product codes.
    """
    if isinstance(index, faiss.IndexIVFPQFastScan):
        return decode_packed(index, numbers, offsets)
    if isinstance(index, faiss.IndexIVFFastScan):
        raise QueryError(
            f"this index, {with_article(type(index).__name__)}, cannot give rows back; leave out rows as queries, "
            "near-duplicates, diversity and surprise, or build another kind"
        )
    rows = np.empty((len(numbers), index.d), np.float32)
    for row, number, offset in zip(rows, numbers.tolist(), offsets.tolist(), strict=True):
        index.reconstruct_from_offset(number, offset, faiss.swig_ptr(row))
    return rows
