"""Rows decoded from an index's codes, for "more like this", near-duplicates and diversity."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.index import Index
from clip_retrieval.search.row_places import RowPlaces, decode_at, decode_placed
from clip_retrieval.search.tree import has_ids


def read_held(index: Index, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows [n, d] by id, of unit length, as near to the embeddings as the index's codes allow.

    A row without an embedding is zero, and so is a row with NaN or infinity, which files of other programs may have.
    Raises QueryError for an id without a row.
    """
    each, repeats = np.unique(ids, return_inverse=True)
    rows = decode_rows(index, each)
    missing = each[~rows.any(axis=1) & ((each < 0) | (each >= index.row_count))]
    if len(missing):
        raise QueryError(f"the index has no row {int(missing[0])}; its ids are 0 to {index.row_count - 1:,}")
    rows[~np.isfinite(rows).all(axis=1)] = 0
    return to_unit_length(rows)[repeats]


def decode_rows(index: Index, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows [n, d] by ascending ids, decoded from all parts; zero rows for ids that no part has."""
    rows = np.zeros((len(ids), index.dim), np.float32)
    for part in index.parts:
        places = locate(part, ids)
        wanted = (places >= 0) & ~rows.any(axis=1)
        if wanted.any():
            rows[wanted] = decode(faiss.downcast_index(part.index), places[wanted], part.places)
    return rows


def to_unit_length(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1; zero rows stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.where(lengths == 0, 1, lengths)
    return unit


def sample_held(index: Index, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return up to `count` rows [n, d] of unit length, drawn uniformly; the same rows each time.

    Rows of lists are drawn by their position there, so no list is scanned.
    """
    random = np.random.default_rng(seed)
    sizes = [int(part.index.ntotal) for part in index.parts]
    drawn = random.choice(sum(sizes), min(count, sum(sizes)), replace=False)
    owners = np.searchsorted(np.cumsum(sizes), drawn, side="right")
    firsts = np.cumsum([0, *sizes])
    parts = [
        sample_part(faiss.downcast_index(part.index), np.sort(drawn[owners == i] - firsts[i]))
        for i, part in enumerate(index.parts)
    ]
    rows = np.concatenate(parts)
    return to_unit_length(rows[rows.any(axis=1) & np.isfinite(rows).all(axis=1)])


def sample_part(index: Any, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows at places among all that an index holds, lists one after the other."""
    if isinstance(index, faiss.IndexRefine):
        return sample_part(faiss.downcast_index(index.refine_index), places)
    if isinstance(index, faiss.IndexPreTransform):
        return undo(index, sample_part(faiss.downcast_index(index.index), places))
    if isinstance(index, faiss.IndexIDMap):
        return sample_part(faiss.downcast_index(index.index), places)
    if not isinstance(index, faiss.IndexIVF):
        return decode(index, places, RowPlaces())
    ends = np.cumsum([index.invlists.list_size(number) for number in range(index.nlist)])
    places = places[places < ends[-1]]  # rows without an embedding are in no list
    numbers = np.searchsorted(ends, places, side="right")
    return decode_at(index, numbers, places - np.concatenate([[0], ends])[numbers])


def locate(part: OpenPart, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a part's own ids of rows: explicit ids, which may be missing, else positions; -1 outside of its range."""
    local = ids - part.first_row
    count = part.index.ntotal if not has_ids(part.index) else np.iinfo(np.int64).max
    return np.where((local >= 0) & (local < count), local, -1)


def decode(index: Any, ids: NDArray[np.int64], places: RowPlaces) -> NDArray[np.float32]:
    """Return rows by the index's own ids; zero rows for ids that it does not hold."""
    if isinstance(index, faiss.IndexRefine):  # its store has every row at its position
        return decode(faiss.downcast_index(index.refine_index), ids, places)
    if isinstance(index, faiss.IndexPreTransform):
        return undo(index, decode(faiss.downcast_index(index.index), ids, places))
    if isinstance(index, faiss.IndexIVF):
        known = places.find(index)
        return decode_lists(index, ids) if known is None else decode_placed(index, ids, known)
    if isinstance(index, faiss.IndexIDMap):
        return decode_mapped(index, ids, places)
    rows: NDArray[np.float32] = index.reconstruct_batch(ids)
    return rows


def decode_mapped(index: Any, ids: NDArray[np.int64], row_places: RowPlaces) -> NDArray[np.float32]:
    """Return rows by the ids of an id map; zero rows for ids that it does not hold."""
    rows = np.zeros((len(ids), index.d), np.float32)
    held = faiss.vector_to_array(index.id_map)
    if len(held):
        order = np.argsort(held)
        places = order[np.minimum(np.searchsorted(held, ids, sorter=order), len(held) - 1)]
        found = held[places] == ids
        if found.any():
            rows[found] = decode(faiss.downcast_index(index.index), places[found], row_places)
    return rows


def undo(index: Any, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the reverse of the transforms before an index, the last one first; zero rows stay."""
    is_held = rows.any(axis=1)
    for place in reversed(range(index.chain.size())):
        rows = faiss.downcast_VectorTransform(index.chain.at(place)).reverse_transform(rows)
    rows[~is_held] = 0  # PCA adds its mean to every row
    return rows


def decode_lists(index: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows by ascending ids from inverted lists, by scanning the lists."""
    rows = np.zeros((len(ids), index.d), np.float32)
    lists, left = index.invlists, len(ids)
    numbers, offsets, found = [], [], []
    for number in range(index.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        held = faiss.rev_swig_ptr(lists.get_ids(number), size)
        at = np.minimum(np.searchsorted(ids, held), len(ids) - 1)
        here = np.flatnonzero(ids[at] == held)
        numbers.append(np.full(len(here), number))
        offsets.append(here)
        found.append(at[here])
        left -= len(here)
        if not left:
            break
    if found:
        rows[np.concatenate(found)] = decode_at(index, np.concatenate(numbers), np.concatenate(offsets))
    return rows
