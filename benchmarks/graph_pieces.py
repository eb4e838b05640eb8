"""Times searches of a graph in pieces that reaches fewer rows than are asked for: all rows compared, or more entries.

python benchmarks/graph_pieces.py ROWS DIM ROWS_OF_A_PIECE HITS
"""

from __future__ import annotations

import sys
import time
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search import graph_entries
from clip_retrieval.search.index import Index

LINKS = 8
QUERIES = 16
ALL, NONE = 1 << 60, 0  # graphs of which all rows are compared, by their numbers


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def make_graph(rows: NDArray[np.float32], size: int) -> Any:
    """Return a graph whose links are those of rings with chords, of `size` rows each; faiss would take minutes."""
    random, count = np.random.default_rng(1), len(rows)
    graph = faiss.IndexHNSWFlat(rows.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    faiss.downcast_index(graph.storage).add(rows)
    graph.ntotal = count
    at = np.arange(count)
    first, place = at // size * size, at % size
    links = np.full((count, 2 * LINKS), -1, np.int32)
    for i in range(min(LINKS, size - 1)):
        links[:, i] = first + (place + (i + 1 if i < 2 else random.integers(1, size))) % size
    hnsw = graph.hnsw
    faiss.copy_array_to_vector(np.ones(count, np.int32), hnsw.levels)
    faiss.copy_array_to_vector((np.arange(count + 1) * 2 * LINKS).astype(np.uint64), hnsw.offsets)
    faiss.copy_array_to_vector(links.ravel(), hnsw.neighbors)
    hnsw.entry_point = hnsw.max_level = 0
    return graph


def main(count: int, dim: int, size: int, k: int) -> None:
    random = np.random.default_rng(0)
    centers = unit(random.standard_normal((count // size, dim)))
    rows = unit(np.repeat(centers, size, axis=0) + 0.1 * random.standard_normal((count, dim)))
    queries = unit(rows[random.integers(0, count, QUERIES)] + 0.05 * random.standard_normal((QUERIES, dim)))
    graph = make_graph(rows, size)
    means = []
    for name, most in (("all rows compared", ALL), ("more entries", NONE)):
        graph_entries.MOST_COMPARED = most
        index = Index(graph, np.empty(0, np.int64))
        seconds = []
        for query in queries:
            start = time.perf_counter()
            index.search(query, k)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        found = index.search_many(queries, k)
        together = time.perf_counter() - start
        means.append(np.mean([hits.scores.mean() for hits in found]))
        print(
            f"{name}: first {1000 * seconds[0]:.0f} ms, later {1000 * np.median(seconds):.1f} ms, {QUERIES} at once "
            f"{1000 * together:.0f} ms; {min(len(hits.ids) for hits in found)} hits, mean score {means[-1]:.3f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
