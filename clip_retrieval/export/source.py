"""What is exported: embeddings and metadata by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.vectors import Vectors, add_up, measure
from clip_retrieval.errors import SourceError
from clip_retrieval.export.columns import Column, tidy
from clip_retrieval.layout import Modality
from clip_retrieval.metadata import Metadata
from clip_retrieval.search.index import Index

Ids = NDArray[np.int64]
Kind = Literal["embeddings", "codes"]

NO_METADATA = pa.table({})
READ_ROWS = 65_536  # rows in memory at once, unless a batch is larger
FIRST_ROWS = 4_096  # rows that are read at once to find the first one to export


@dataclass(frozen=True, eq=False)
class Block:
    """Rows to export: their ids, vectors and metadata. Writing them completes rows start..stop of the folder."""

    start: int
    stop: int
    ids: Ids
    vectors: NDArray[Any]  # [n, d], as they are stored
    metadata: pa.Table
    empty: int = 0  # rows that have no embedding

    def part(self, start: int, stop: int) -> Block:
        """Return the part of the block within rows start..stop."""
        first, end = (int(place) for place in np.searchsorted(self.ids, [start, stop]))
        metadata = self.metadata.slice(first, end - first)
        return Block(start, stop, self.ids[first:end], self.vectors[first:end], metadata)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An opened folder, and which of its rows and columns are exported."""

    url: str
    modality: Modality
    row_count: int
    dim: int
    dtype: np.dtype[Any]
    kind: Kind
    stream: Callable[[int, int], Iterator[tuple[int, NDArray[Any]]]]  # (first row, rows a piece) to stored rows
    take: Callable[[Ids], NDArray[np.float32]]  # rows by id, zero if they have no embedding
    identity: str  # differs if a row does
    metadata: Metadata | None
    columns: list[Column]
    met: Ids | None = None  # ids that meet --where; None: all
    others: Vectors | None = None  # embeddings of the other modality, of the same model
    checksums: NDArray[np.uint32] | None = None  # of the index's rows, which the embeddings must match
    index: Index | None = None  # if an index folder was named
    notes: list[str] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)  # values that had to be changed, by sentence

    def blocks(self, start: int, size: int, *, stop: int, with_metadata: bool = True) -> Iterator[Block]:
        """Yield what is exported of rows start..stop, `size` rows of the folder at a time.

        Raises SourceError on NaN and infinity, and if the embeddings are not those of the index.
        """
        for first, stored in self.stream(start, size):
            if first >= stop:
                return
            stored = stored[: stop - first]
            filled = self.find_filled(first, stored)
            empty = len(stored) - int(filled.sum())
            if self.met is not None:
                near = self.met[slice(*np.searchsorted(self.met, [first, first + len(stored)]))]
                filled &= np.isin(np.arange(first, first + len(stored)), near, assume_unique=True)
            ids = first + np.flatnonzero(filled)
            metadata = self.read_metadata(ids) if with_metadata else NO_METADATA
            yield Block(first, first + len(stored), ids, stored[ids - first], metadata, empty)

    def find_filled(self, first: int, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Say which rows [n, d] have an embedding."""
        lengths = measure(stored)
        if not np.isfinite(lengths).all():
            bad = first + int(np.flatnonzero(~np.isfinite(lengths))[0])
            raise SourceError(f"row {bad:,} of {self.url} is not finite; embed it again")
        if self.checksums is not None:
            known = self.checksums[first : first + len(stored)]
            if not np.array_equal(np.where(lengths == 0, 0, np.maximum(add_up(stored), 1)).astype(np.uint32), known):
                raise SourceError(
                    f"from row {first:,} on, the index was built from other embeddings than {self.url} has; update "
                    "the index, or name its folder with --embeddings_folder"
                )
        filled: NDArray[np.bool_] = lengths != 0
        return filled

    def read_metadata(self, ids: Ids) -> pa.Table:
        """Return the columns of some rows, with the names and values for the engine."""
        if self.metadata is None or not self.columns:
            return NO_METADATA
        return tidy(self.metadata.rows(ids, [column.source for column in self.columns]), self.columns, self.odd)

    def has_rows(self) -> bool:
        """Say whether any row is exported; reads only up to the first one."""
        if self.met is None:
            blocks = self.blocks(0, FIRST_ROWS, stop=self.row_count, with_metadata=False)
            return any(len(block.ids) > 0 for block in blocks)
        starts = range(0, len(self.met), FIRST_ROWS)
        return any(self.is_exported(self.met[start : start + FIRST_ROWS]).any() for start in starts)

    def is_exported(self, ids: Ids) -> NDArray[np.bool_]:
        """Say which rows are exported: the ones that have an embedding and meet the condition."""
        kept: NDArray[np.bool_] = self.take(ids).any(axis=1)
        if self.met is None or not len(self.met):
            return kept & (self.met is None)
        near = np.minimum(np.searchsorted(self.met, ids), len(self.met) - 1)
        met: NDArray[np.bool_] = self.met[near] == ids
        return kept & met


def pieces(vectors: Vectors, start: int, size: int) -> Iterator[NDArray[Any]]:
    """Yield the stored rows from `start` on, file by file."""
    for file in vectors.files:
        if start < file.row_count:
            for _, rows in vectors.stored_parts(file, size, max(0, start)):
                yield rows
        start -= file.row_count


def on_grid(rows: Iterator[NDArray[Any]], start: int, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield rows with the number of the first, cut at multiples of `size` across the ends of files."""
    held: list[NDArray[Any]] = []
    count, stop = 0, size - start % size
    for piece in rows:
        held.append(piece)
        count += len(piece)
        while count >= stop:
            joined = np.concatenate(held)
            yield start, joined[:stop]
            held, count, start = [joined[stop:]], count - stop, start + stop
            stop = size
    if count:
        yield start, np.concatenate(held)


def to_precision(vectors: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return rows as an engine stores them."""
    if dtype == np.float32:
        return widen(vectors)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(vectors, dtype=dtype)
