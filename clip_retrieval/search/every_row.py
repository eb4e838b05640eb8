"""Compares every row of a graph, since a graph silently misses rows that none of its links leads to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.results import SearchResult, empty_result, merge

ROWS_AT_ONCE = 16_384  # 16,384 rows of 512 numbers are 32 MB
QUERIES_AT_ONCE = 64
Keep = Callable[[NDArray[np.int64]], NDArray[np.bool_]]  # says which ids may be hits


class BestRows:
    """The best k hits of one query among rows that come in blocks."""

    def __init__(self, k: int) -> None:
        self.k, self.least = k, -np.inf
        self.blocks: list[SearchResult] = []
        self.count = 0

    def add(self, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        good = scores >= self.least
        self.blocks.append(SearchResult(ids[good], scores[good]))
        self.count += len(self.blocks[-1].ids)
        if self.count > 2 * self.k + ROWS_AT_ONCE:
            best = self.result()
            self.blocks, self.count = [best], len(best.ids)
            self.least = float(best.scores[-1]) if len(best.ids) == self.k else -np.inf

    def result(self) -> SearchResult:
        return merge(self.blocks, self.k) if self.blocks else empty_result()


def compare_every_row(part: OpenPart, queries: NDArray[np.float32], k: int, keep: Keep) -> list[SearchResult]:
    """Return the best k rows of a part for each query [q, d] by comparing all its rows, block by block.

    Scores equal those of a search: they are of the codes that a search compares, after the same transforms.
    """
    node, queries, id_map = unwrap(part.index, queries)
    store = faiss.downcast_index(node.refine_index) if isinstance(node, faiss.IndexRefine) else node
    best = [BestRows(k) for _ in queries]
    for start in range(0, int(node.ntotal), ROWS_AT_ONCE):
        places = np.arange(start, min(start + ROWS_AT_ONCE, int(node.ntotal)))
        ids = part.first_row + (places if id_map is None else id_map[places])
        kept = keep(ids)
        if not kept.any():
            continue
        rows, ids = store.reconstruct_batch(places[kept]), ids[kept]
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            some = queries[first : first + QUERIES_AT_ONCE]
            for each, scores in zip(best[first:], compare(some, rows, part.index.metric_type), strict=False):
                each.add(ids, scores)
    return [each.result() for each in best]


def compare(queries: NDArray[np.float32], rows: NDArray[np.float32], metric: int) -> NDArray[np.float32]:
    """Return scores [q, n]: inner products, or their equivalent if the index measures distances."""
    scores: NDArray[np.float32] = queries @ rows.T
    if metric == faiss.METRIC_L2:  # |a - b|^2 = 2 - 2ab
        scores += 1 - (np.square(queries).sum(axis=1)[:, None] + np.square(rows).sum(axis=1)) / 2
    return scores


def count_kept(part: OpenPart, excluded: NDArray[np.int64]) -> int:
    """Return how many rows of a part may be hits."""
    count = int(part.index.ntotal)
    if not len(excluded):
        return count
    id_map = unwrap(part.index, np.empty((0, part.index.d), np.float32))[2]
    if id_map is None:
        return count - int(((excluded >= part.first_row) & (excluded < part.first_row + count)).sum())
    return count - int(np.isin(part.first_row + id_map, excluded).sum())


def unwrap(index: Any, queries: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32], NDArray[np.int64] | None]:
    """Return the index below transforms and id maps, the transformed queries, and the ids by place."""
    node, id_map = faiss.downcast_index(index), None
    while isinstance(node, faiss.IndexPreTransform | faiss.IndexIDMap):
        if isinstance(node, faiss.IndexPreTransform):
            for place in range(node.chain.size() if len(queries) else 0):
                queries = faiss.downcast_VectorTransform(node.chain.at(place)).apply(np.ascontiguousarray(queries))
        else:
            size = int(node.id_map.size())
            below = faiss.rev_swig_ptr(node.id_map.data(), size) if size else np.empty(0, np.int64)  # a view
            id_map = below if id_map is None else id_map[below]
        node = faiss.downcast_index(node.index)
    return node, queries, id_map
