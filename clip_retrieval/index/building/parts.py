"""Parts of an index: rows are added to a copy of the trained, empty index, and parts are merged.

Lists hold explicit ids: row numbers in the embeddings folder. In other indices, and in a refinement, which looks rows
up by id, ids are positions from the first row of the file. Stores are written by `code_stores.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.vectors import VectorFile, Vectors
from clip_retrieval.embeddings.zero_rows import find_filled
from clip_retrieval.index.building.block_lists import merge_lists
from clip_retrieval.index.building.code_stores import CodesInFile, find_lists
from clip_retrieval.index.building.edit_rows import Rows, transform
from clip_retrieval.index.building.grown_graphs import make_room
from clip_retrieval.index.building.quick_lists import quick_lists
from clip_retrieval.index.building.ranges import RowRange
from clip_retrieval.index.planning.costs import ROWS_TO_ADD
from clip_retrieval.search.tree import has_ids

ROWS_OF_COPY = 65_536


def locate(vectors: Vectors, wanted: RowRange) -> Iterator[tuple[VectorFile, int, int]]:
    """Yield the files that hold rows start..stop, in order, each with the range of its own rows."""
    first = 0
    for file in vectors.files:
        begin, end = max(wanted.start - first, 0), min(wanted.stop - first, file.row_count)
        first += file.row_count
        if begin < end:
            yield file, begin, end


def read_range(vectors: Vectors, wanted: RowRange) -> Iterator[NDArray[Any]]:
    """Yield the stored rows start..stop in order, some thousand at once [n, d]; only their files are opened."""
    for file, begin, end in locate(vectors, wanted):
        for _, rows in vectors.stored_parts(file, ROWS_TO_ADD, begin, end):
            yield rows


def find_halves(vectors: Vectors, wanted: RowRange) -> list[CodesInFile] | None:
    """Return where rows start..stop are in files on this machine in half precision; None unless all of them are."""
    if not vectors.folder.is_local:
        return None
    found: list[CodesInFile] = []
    for file, begin, end in locate(vectors, wanted):
        _, first = next(vectors.stored_parts(file, 1))
        if not isinstance(first, np.memmap) or first.dtype != np.dtype("<f2"):
            return None
        row_bytes = first.itemsize * vectors.dim
        for start in range(begin, end, ROWS_OF_COPY):
            count = min(ROWS_OF_COPY, end - start)
            place = first.offset + start * row_bytes
            found.append(CodesInFile(vectors.path(file), place, count * row_bytes, count))
    return found


def open_bytes(index: bytes) -> Any:
    return faiss.deserialize_index(np.frombuffer(index, dtype=np.uint8))


def fill_lists(index: Any, batches: Iterable[NDArray[Any]], wanted: RowRange) -> None:
    """Add some rows to the part of a trained index that is in memory: everything except its store."""
    lists = find_lists(index)
    first_id = wanted.start if has_ids(index) else 0
    make_room(lists, wanted.row_count)
    with quick_lists(lists):
        for stored in batches:
            rows = widen(stored)
            add_rows(lists, rows, first_id, find_filled(rows))
            first_id += len(rows)


def add_rows(index: Any, rows: Rows, first_id: int, filled: NDArray[np.int64]) -> None:
    """Add rows [n, d] as ids from `first_id` on; lists take only the `filled` ones, as zero rows are never hits."""
    tree = faiss.downcast_index(index)
    if isinstance(tree, faiss.IndexPreTransform):
        add_rows(tree.index, transform(tree, rows), first_id, filled)
        tree.ntotal = tree.index.ntotal
    elif isinstance(tree, faiss.IndexRefine):
        add_rows(tree.base_index, rows, first_id, filled)
        tree.refine_index.add(rows)  # all rows, zero ones too: positions are ids there
        tree.ntotal = tree.refine_index.ntotal
    elif isinstance(tree, faiss.IndexIVF):
        some = rows if len(filled) == len(rows) else rows[filled]
        tree.add_with_ids(np.ascontiguousarray(some), filled + first_id)
    else:
        tree.add(rows)


def merge_into(index: Any, other: Any, first_id: int) -> None:
    """Move all rows of `other`, which has the same structure, into `index`; `first_id` is added to their ids."""
    tree, part = faiss.downcast_index(index), faiss.downcast_index(other)
    if isinstance(tree, faiss.IndexPreTransform):
        merge_into(tree.index, part.index, first_id)
        tree.ntotal = tree.index.ntotal
    elif isinstance(tree, faiss.IndexRefine):
        merge_into(tree.base_index, part.base_index, first_id)
        merge_into(tree.refine_index, part.refine_index, 0)
        tree.ntotal = tree.refine_index.ntotal
    elif isinstance(tree, faiss.IndexIVFFastScan):
        tree.check_compatible_for_merge(part)
        merge_lists(faiss.downcast_InvertedLists(tree.invlists), faiss.downcast_InvertedLists(part.invlists), first_id)
        tree.ntotal += part.ntotal
    elif isinstance(tree, faiss.IndexIVF):
        tree.merge_from(part, first_id)
    else:
        tree.merge_from(part)


UNMERGED = tuple(getattr(faiss, name) for name in ("IndexIVFRaBitQFastScan",) if hasattr(faiss, name))  # loses factors


def can_be_merged(index: Any) -> bool:
    """Say whether faiss can merge parts of this kind: lists and flat codes, but no graphs."""
    tree = faiss.downcast_index(index)
    if isinstance(tree, UNMERGED):
        return False
    if isinstance(tree, faiss.IndexPreTransform):
        return can_be_merged(tree.index)
    if isinstance(tree, faiss.IndexRefine):
        return can_be_merged(tree.base_index) and can_be_merged(tree.refine_index)
    return isinstance(tree, faiss.IndexIVF | faiss.IndexFlatCodes | faiss.IndexPQFastScan)
