"""Exact answers: the rows nearest to each query by inner product, found in one pass over all rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.embeddings.zero_rows import find_filled
from clip_retrieval.index.measuring.queries import MOST_QUERIES, QuerySet
from clip_retrieval.index.planning.costs import MOST_TRUTH_THREADS, TRUTH_BLOCK_BYTES

DEPTH = 128  # neighbors that are kept: the 100 that count, and some that may be as near as the last of them
# fp32 sums of the same products in another order may differ by this much; equal rows must count as equal.
TOLERANCE = 1e-6

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The nearest rows of each query, best first; -1 and -inf if there are no more."""

    queries: QuerySet
    vectors: Vectors
    ids: Ids  # [q, DEPTH]
    scores: Rows  # [q, DEPTH]
    candidate_count: int  # rows that a query can find: all except zero rows and its own

    def first(self, count: int) -> Truth:
        """Return the truth of only the first queries."""
        part = slice(count)
        return replace(self, queries=self.queries.first(count), ids=self.ids[part], scores=self.scores[part])

    def recall(self, answers: Ids, k: int) -> float | None:
        """Return the mean share of a query's k nearest rows that its first k answers [q, >= k] hold.

        An answer counts if its exact score is that of the k-th nearest row or better, so any of several equal rows
        counts. None if there is nothing to find.
        """
        wanted = min(k, self.candidate_count)
        if wanted == 0 or len(self.queries) == 0:
            return None
        found = self.are_near(answers[:, :k], self.scores[:, wanted - 1] - TOLERANCE)
        return float(found.sum(axis=1).mean() / wanted)

    def are_near(self, answers: Ids, floor: Rows) -> NDArray[np.bool_]:
        """Return a mask [q, k] of answers whose exact scores reach their query's floor [q]."""
        near = self.scores >= floor[:, None]
        found: NDArray[np.bool_] = (answers[:, :, None] == np.where(near, self.ids, -2)[:, None, :]).any(axis=2)
        # Danger: more rows than DEPTH may be as near as the last kept one, as with many copies of one picture.
        for query in np.flatnonzero(near[:, -1] & (self.candidate_count > near.shape[1])):
            unknown = np.flatnonzero(~found[query] & (answers[query] >= 0))
            scores = read_rows(self.vectors, answers[query, unknown]) @ self.queries.rows[query]
            found[query, unknown] = scores >= floor[query]
        return found


class Nearest:
    """The best rows so far of each query [q, depth], unordered."""

    def __init__(self, query_count: int, depth: int) -> None:
        self.scores = np.full((query_count, depth), -np.inf, np.float32)
        self.ids = np.full((query_count, depth), -1, np.int64)

    def add(self, ids: Ids, scores: Rows) -> None:
        """Merge the best rows [q, any] of another block; ids of -1 are padding."""
        ids, scores = np.hstack([self.ids, ids]), np.hstack([self.scores, np.where(ids < 0, -np.inf, scores)])
        kept = np.argpartition(-scores, self.ids.shape[1] - 1, axis=1)[:, : self.ids.shape[1]]
        self.ids, self.scores = np.take_along_axis(ids, kept, axis=1), np.take_along_axis(scores, kept, axis=1)

    def ordered(self) -> tuple[Ids, Rows]:
        """Return ids and scores, best first, equal scores by id."""
        order = np.lexsort((self.ids, -self.scores), axis=1)
        return np.take_along_axis(self.ids, order, axis=1), np.take_along_axis(self.scores, order, axis=1)


@dataclass(frozen=True)
class Effort:
    """The number of threads, the event that stops them, and how many queries of each modality are drawn at most."""

    threads: int = field(default_factory=faiss.omp_get_max_threads)
    stop: Event = field(default_factory=Event)
    most_queries: int = MOST_QUERIES


def find_truth(vectors: Vectors, query_sets: Sequence[QuerySet], effort: Effort | None = None) -> list[Truth]:
    """Return the truth of each set of queries, all of them in one pass over the rows.

    Memory: for each thread and for reading, one block of 16 MiB, or two if some of its rows are zero, for any number of
    rows. Zero rows are never neighbors. Raises CancelledError soon after it is told to stop.
    """
    effort = effort or Effort()
    queries = np.concatenate([queries.rows for queries in query_sets])
    nearest = Nearest(len(queries), DEPTH + 1)  # one more, since a query's own row is left out
    filled_count = 0
    for ids, scores, filled in search_blocks(vectors, queries, min(effort.threads, MOST_TRUTH_THREADS)):
        if effort.stop.is_set():
            raise CancelledError
        nearest.add(ids, scores)
        filled_count += filled
    ids, scores = nearest.ordered()
    truths, start = [], 0
    for query_set in query_sets:
        part = slice(start, start + len(query_set))
        own = query_set.own_ids
        kept = keep_others(ids[part], own)
        truths.append(
            Truth(
                queries=query_set,
                vectors=vectors,
                ids=ids[part][kept].reshape(-1, DEPTH),
                scores=scores[part][kept].reshape(-1, DEPTH),
                candidate_count=filled_count - (own is not None),
            )
        )
        start += len(query_set)
    return truths


def keep_others(ids: Ids, own_ids: Ids | None) -> NDArray[np.bool_]:
    """Return the mask [q, k + 1] of all except each query's own row, or except the last one if it is not there."""
    kept = np.ones(ids.shape, np.bool_)
    if own_ids is not None:
        kept = ids != own_ids[:, None]
    kept[kept.all(axis=1), -1] = False
    return kept


def search_blocks(vectors: Vectors, queries: Rows, threads: int) -> Iterator[tuple[Ids, Rows, int]]:
    """Yield the best ids and scores [q, DEPTH + 1] of each block, and how many rows of it are filled.

    Each block has one thread: faiss and NumPy can share one block among threads, but then these wait for each other,
    and for threads that build an index meanwhile.
    """
    blocks = read_blocks(vectors)
    with ThreadPoolExecutor(threads, initializer=use_one_thread) as pool:
        waiting: deque[Future[tuple[Ids, Rows, int]]] = deque()
        try:
            for first_id, block in blocks:
                waiting.append(pool.submit(search_block, queries, block, first_id))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def use_one_thread() -> None:
    faiss.omp_set_num_threads(1)  # OpenMP counts threads for each Python thread


def search_block(queries: Rows, block: Rows, first_id: int) -> tuple[Ids, Rows, int]:
    filled = find_filled(block)
    if len(filled) == 0:  # faiss.knn of no rows returns uninitialized memory
        return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32), 0
    rows = block[filled] if len(filled) < len(block) else block
    scores, places = faiss.knn(queries, rows, DEPTH + 1, metric=faiss.METRIC_INNER_PRODUCT)
    return np.where(places < 0, -1, filled[places] + first_id), scores, len(filled)


def read_blocks(vectors: Vectors) -> Iterator[tuple[int, Rows]]:
    row_count = max(1, TRUTH_BLOCK_BYTES // (4 * vectors.dim))
    first_id = 0
    for file in vectors.files:
        for start, part in vectors.parts_of(file, row_count):
            yield first_id + start, part
        first_id += file.row_count
