"""Queries to measure an index with: random embeddings of pictures and captions of the run that it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import pick, read_rows, until
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.layout import MODALITIES, Modality

SEED = 20
MOST_QUERIES, FEWEST_QUERIES = 256, 64
QUERIES_OF_EXACT = 16  # an exact index finds all: they only measure its time
TRUTH_PRODUCTS = 1e11  # multiplications that exact truth may take before there are fewer queries: a second or two
TRIED_MORE, MOST_TRIED = 8, 64  # multiples of the wanted rows to try if some are empty


@dataclass(frozen=True)
class QuerySet:
    """Queries of one modality, in random order."""

    modality: Modality
    rows: NDArray[np.float32]  # [q, d]
    own_ids: NDArray[np.int64] | None  # [q]: which rows of the index they are; None if they are not rows of it

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> QuerySet:
        return QuerySet(self.modality, self.rows[:count], None if self.own_ids is None else self.own_ids[:count])


def count_queries(row_count: int, dim: int) -> int:
    """Return how many queries of each modality are drawn: 256; past 380,000 rows of 512 fewer, past 1.5 million 64.

    Exact truth multiplies every row with every query. A rotation, or the search for a row's list among thousands, takes
    several times as long, so truth stays a small part of a build. 64 queries give recall@10 to about 0.02.
    """
    affordable = int(TRUTH_PRODUCTS / (len(MODALITIES) * max(1, row_count) * dim))
    return min(MOST_QUERIES, max(FEWEST_QUERIES, affordable))


def draw_queries(
    modality: Modality, found: Mapping[Modality, Vectors], stop: Event | None = None, most: int = MOST_QUERIES
) -> dict[Modality, QuerySet]:
    """Return at most `count` queries for the index of `modality`, by their own modality.

    A modality without embeddings of its dimension has none.

    The same folder gives the same queries. A query of the index's own modality is one of its rows: leave it out of
    truth and answers, which is the same as holding it out, except for the training of quantizers.
    Raises CancelledError soon after it is told to stop.
    """
    dim = found[modality].dim
    count = min(most, count_queries(found[modality].row_count, dim))
    drawn = {}
    for other in MODALITIES:
        if other in found and found[other].dim == dim:
            ids, rows = draw_rows(found[other], count, stop)
            if len(ids):
                drawn[other] = QuerySet(other, rows, ids if other == modality else None)
    return drawn


def draw_rows(vectors: Vectors, count: int, stop: Event | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return up to `count` random rows that are neither zero nor broken, and their ids, in random order.

    If hardly any row is filled, there are fewer: those among 64 times the wanted rows, or else the first ones. Memory
    holds the returned rows, and a block of the rows that are looked at. Raises CancelledError soon after it is told to
    stop.
    """
    random = np.random.default_rng(SEED)
    ids = random.choice(vectors.row_count, min(count, vectors.row_count), replace=False)
    rows = read_rows(vectors, ids, stop)
    if are_usable(rows).all():
        return ids, rows
    del rows  # they may be half of the memory
    tried = count
    while True:
        ids = random.choice(vectors.row_count, min(tried, vectors.row_count), replace=False)
        usable = ids[find_usable(vectors, ids, stop)][:count]
        is_last = len(ids) == vectors.row_count
        if len(usable) == count or is_last or (len(usable) and tried >= MOST_TRIED * count):
            return usable, read_rows(vectors, usable, stop)
        if tried >= MOST_TRIED * count:
            return first_rows(vectors, count, stop)
        tried *= TRIED_MORE


def find_usable(vectors: Vectors, ids: NDArray[np.int64], stop: Event | None = None) -> NDArray[np.bool_]:
    """Return a mask [n] of the rows that are neither zero nor broken."""
    usable = np.empty(len(ids), np.bool_)
    for places, rows in until(stop, pick(vectors, ids)):
        usable[places] = are_usable(rows)
    return usable


def are_usable(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    usable: NDArray[np.bool_] = np.isfinite(rows).all(axis=1) & rows.any(axis=1)
    return usable


def first_rows(
    vectors: Vectors, count: int, stop: Event | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first filled rows, up to `count`, and their ids."""
    ids, rows, first_id, missing = [], [], 0, count
    for part in until(stop, vectors.parts()):
        usable = np.flatnonzero(are_usable(part))[:missing]
        ids.append(usable + first_id)
        rows.append(part[usable])
        first_id, missing = first_id + len(part), missing - len(usable)
        if missing == 0:
            break
    return np.concatenate(ids), np.concatenate(rows)
