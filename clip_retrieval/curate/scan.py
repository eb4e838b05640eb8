"""The first pass over all embeddings: which rows have one, and which are the same, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import Floats, Ids, Pool
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.errors import SourceError
from clip_retrieval.progress import show_progress

ROWS_COMPARED = 8192


@dataclass(frozen=True, eq=False)
class Scan:
    """Rows by what they hold."""

    classes: Ids  # [n]: number of the row's embedding, -1 for a zero row; equal embeddings share one
    representatives: Ids  # [classes]: the first row of each, ascending
    hashes: NDArray[np.uint64]  # [n], of the numbers of each row; 0 for a zero row

    @property
    def filled(self) -> int:
        return int((self.classes >= 0).sum())

    @cached_property
    def sizes(self) -> Ids:
        """Rows of each class."""
        return np.bincount(self.classes[self.classes >= 0], minlength=len(self.representatives)).astype(np.int64)


def scan(pool: Pool, work: Workspace, boundary: int) -> Scan:
    """Read every row once; rows from `boundary` on share no class with rows before it. Raises on NaN and infinity."""
    hashes = np.asarray(work.keep("hashes", lambda: hash_rows(pool)))
    classes = work.keep("classes", lambda: classify(pool, hashes, boundary))
    found = np.asarray(classes)
    filled = np.flatnonzero(found >= 0)
    _, first = np.unique(found[filled], return_index=True)
    return Scan(found, filled[first], hashes)


def hash_rows(pool: Pool) -> NDArray[np.uint64]:
    """Return a hash of each row's numbers [n]; 0 for zero rows."""
    hashes = np.zeros(pool.row_count, np.uint64)
    with show_progress("reading", pool.row_count) as advance:
        for start, rows in pool.parts():
            with np.errstate(over="ignore", invalid="ignore"):
                squares = np.einsum("nd,nd->n", rows, rows)  # one pass; undecided rows are looked at again
            odd = np.flatnonzero(~np.isfinite(squares))
            bad = odd[~np.isfinite(rows[odd]).all(axis=1)]
            if len(bad):
                raise SourceError(f"row {start + int(bad[0]):,} of the embeddings is not finite; embed it again")
            rows = rows + np.float32(0)  # -0 and 0 are one number
            hashes[start : start + len(rows)] = [max(1, xxhash.xxh3_64_intdigest(row)) for row in rows]
            empty = np.flatnonzero(squares == 0)
            hashes[start + empty[~rows[empty].any(axis=1)]] = 0
            advance(len(rows))
    return hashes


def classify(pool: Pool, hashes: NDArray[np.uint64], boundary: int) -> Ids:
    """Return the class of each row [n], in order of first rows; equal hashes are compared number by number."""
    filled = np.flatnonzero(hashes)
    salted = hashes[filled] ^ np.where(filled >= boundary, np.uint64(0x9E3779B97F4A7C15), np.uint64(0))
    _, first, inverse = np.unique(salted, return_index=True, return_inverse=True)
    owners = filled[first][inverse]
    for start in range(0, len(filled), ROWS_COMPARED):
        rows, theirs = filled[start : start + ROWS_COMPARED], owners[start : start + ROWS_COMPARED]
        again = np.flatnonzero(rows != theirs)
        differs = again[~same_rows(pool.rows(rows[again]), pool.rows(theirs[again]))]
        owners[start + differs] = rows[differs]
    classes = np.full(len(hashes), -1, np.int64)
    classes[filled] = np.unique(owners, return_inverse=True)[1]
    return classes


def same_rows(a: Floats, b: Floats) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (a == b).all(axis=1)
    return same
