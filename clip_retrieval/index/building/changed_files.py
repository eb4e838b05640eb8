"""Writes an index file again with rows removed and added; what does not change is copied from file to file.

Memory holds all of an index only if its rows are not in a store or in lists, as in graphs (decision 15).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.rows import pick, read_rows
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.embeddings.zero_rows import find_filled
from clip_retrieval.index.building.code_stores import encode, find_lists, find_store, holds_halves, write_with_store
from clip_retrieval.index.building.edit_rows import CannotChangeError, Rows, put_rows, remove_rows
from clip_retrieval.index.building.grown_graphs import open_with_room
from clip_retrieval.index.building.listed_files import ListedFile, forget_rows, open_listed, write_listed
from clip_retrieval.index.building.parts import add_rows, find_halves, read_range
from clip_retrieval.index.building.ranges import RowRange
from clip_retrieval.index.building.stored_files import StoredFile, open_stored
from clip_retrieval.index.folder.changed_rows import Change
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.costs import ROWS_OF_PART
from clip_retrieval.layout import INDEX_SUFFIX
from clip_retrieval.search.files import write_file

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class HeldIndex:
    """An index that is completely in memory."""

    index: Any


Opened = HeldIndex | StoredFile | ListedFile


def open_to_change(path: str, change: Change, bounds: Bounds) -> Opened:
    """Return the index, without its store or without its rows if these can stay in the file.

    Raises CannotChangeError if it would need more memory than allowed, RuntimeError if it is not an index.
    """
    in_file = open_listed(path) or open_stored(path)
    if isinstance(in_file, ListedFile):
        held: float = in_file.start + in_file.layout.row_bytes * min(change.added, ROWS_OF_PART)
    else:
        growth = (change.known + change.added) / change.known
        held = (Path(path).stat().st_size - (in_file.codes.size if in_file else 0)) * growth
    if held > bounds.available_bytes:
        raise CannotChangeError("it would be larger than current_memory_available")
    return in_file or HeldIndex(open_with_room(path, change.added))


def write_changed(opened: Opened, change: Change, vectors: Vectors, path: Path) -> None:
    """Write the index for the current embeddings; raises OSError if writing fails."""
    if isinstance(opened, ListedFile):
        write_changed_lists(opened, change, vectors, path)
    elif isinstance(opened, StoredFile):
        write_changed_store(opened, change, vectors, path)
    else:
        change_rows(opened.index, change, vectors)
        write_file(opened.index, path)


def added_range(change: Change) -> RowRange:
    return RowRange(change.known, change.known + change.added)


def change_rows(index: Any, change: Change, vectors: Vectors) -> None:
    """Remove, put and add rows of the part of an index that is in memory."""
    if len(change.emptied):
        remove_rows(index, change.emptied)
    for places, rows in pick(vectors, change.filled):
        put_rows(index, change.filled[places], rows)
    first = change.known
    for rows in map(widen, read_range(vectors, added_range(change))):
        add_rows(index, rows, first, find_filled(rows))
        first += len(rows)


def write_changed_store(stored: StoredFile, change: Change, vectors: Vectors, path: Path) -> None:
    """Write an index whose lists are changed in memory, and whose store is streamed: old codes, then new ones."""
    lists, store = find_lists(stored.index), find_store(stored.index)
    assert store is not None
    if lists is not None:
        change_rows(lists, change, vectors)

    def encode_now(ids: Ids) -> NDArray[np.uint8]:
        """Return the codes of the current rows; emptied ones are zero."""
        codes: NDArray[np.uint8] = store.sa_encode(read_rows(vectors, ids))
        return codes

    # A refinement keeps its codes of emptied rows, which are no longer in lists.
    anew = change.filled if lists is not None else np.union1d(change.filled, change.emptied)
    added = added_range(change)
    halves = find_halves(vectors, added) if holds_halves(store) else None
    new = encode(store, read_range(vectors, added)) if halves is None else halves
    codes = chain(stored.changed(np.sort(anew), encode_now), new)
    write_with_store(stored.index, codes, added.stop, path)


def write_changed_lists(listed: ListedFile, change: Change, vectors: Vectors, path: Path) -> None:
    """Write an index of lists: old rows are copied from file to file, new ones are in memory, some at a time."""
    removed = np.union1d(change.emptied, change.filled)  # autofaiss adds zero rows to lists
    with tempfile.TemporaryDirectory(prefix="added-", dir=path.parent) as scratch:
        new = write_parts(listed.index, find_new(change, vectors), Path(scratch))
        write_listed([replace(listed, removed=removed), *new], path)


def find_new(change: Change, vectors: Vectors) -> Iterator[tuple[Ids, Rows]]:
    """Yield ids and rows that are added to the lists: filled rows, then added rows that are not zero."""
    for places, rows in pick(vectors, change.filled):
        yield change.filled[places], rows
    first = change.known
    for rows in map(widen, read_range(vectors, added_range(change))):
        filled = find_filled(rows)
        yield filled + first, rows if len(filled) == len(rows) else rows[filled]
        first += len(rows)


def write_parts(index: Any, batches: Iterable[tuple[Ids, Rows]], folder: Path) -> list[ListedFile]:
    """Add rows to a trained, empty index of lists, and return files with these rows; then the index is empty again."""
    parts: list[ListedFile] = []

    def finish() -> None:
        path = folder / f"{len(parts)}{INDEX_SUFFIX}"
        write_file(index, path)
        forget_rows(index)
        part = open_listed(str(path))
        assert part is not None
        parts.append(part)

    for ids, rows in batches:
        index.add_with_ids(np.ascontiguousarray(rows), ids)
        if index.ntotal >= ROWS_OF_PART:
            finish()
    if index.ntotal:
        finish()
    return parts
