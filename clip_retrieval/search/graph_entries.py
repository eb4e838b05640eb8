"""A large graph in pieces, entered at many rows at once: to compare all rows takes seconds for each query.

A search enters a graph at one row, and finds the rows that links lead to from there. Where these are too few, the graph
is entered at the best of some thousand rows that are drawn evenly, of which every large piece has some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.every_row import QUERIES_AT_ONCE, compare, compare_every_row, unwrap
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.results import SearchResult, merge

logger = logging.getLogger(__name__)

MOST_COMPARED = 1 << 27  # numbers of rows that are all compared for a query: 0.3 s
ROWS_DRAWN = 65_536  # 128 MB of 512 numbers, a quarter of the smallest such graph
ENTRIES = 256  # of these a query enters the graph at the best
ENTER_ALL_AT_ONCE = 2  # faiss's search_type: one queue for all entries


class Entries:
    """Rows of one graph to enter it at: none until a search finds too few hits, then read once."""

    def __init__(self, part: OpenPart, excluded: NDArray[np.int64]) -> None:
        self.part, self.excluded = part, excluded  # rows that are never hits
        self.lock = Lock()
        self.found: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None

    def may_be_hits(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return ~np.isin(ids, self.excluded)

    def find_more(
        self, queries: NDArray[np.float32], found: list[SearchResult], k: int, wanted: int
    ) -> list[SearchResult]:
        """Return k hits for queries [q, d] that the graph has `found` fewer of than are `wanted`, as it has rows.

        Of a graph of at most MOST_COMPARED numbers they are the best of all rows. Of a larger one they are those that
        are found from more entries, and the best of these entries; all rows are compared if they are still too few.
        """
        node, moved, id_map = unwrap(self.part.index, queries)
        graph = faiss.downcast_index(node.base_index) if isinstance(node, faiss.IndexRefine) else node
        if node.ntotal * node.d <= MOST_COMPARED or not isinstance(graph, faiss.IndexHNSW):
            return compare_every_row(self.part, queries, k, self.may_be_hits)
        store = faiss.downcast_index(node.refine_index) if isinstance(node, faiss.IndexRefine) else node

        def ids_of(places: NDArray[np.int64]) -> NDArray[np.int64]:
            return self.part.first_row + (places if id_map is None else id_map[places])

        places, rows = self.read(store, ids_of)
        if not len(places):  # few rows of the graph may be hits
            return compare_every_row(self.part, queries, k, self.may_be_hits)
        moved, metric = np.ascontiguousarray(moved), self.part.index.metric_type
        blocks = (moved[first : first + QUERIES_AT_ONCE] for first in range(0, len(moved), QUERIES_AT_ONCE))
        of_entries = (scores for some in blocks for scores in compare(some, rows, metric))
        results = []
        for query, scores, hits in zip(moved, of_entries, found, strict=True):
            best = best_of(places, scores, max(ENTRIES, k))
            reached = enter(graph, query, best, k)
            reached = reached[self.may_be_hits(ids_of(reached))]
            own = compare(query[None], store.reconstruct_batch(reached), metric)[0]
            more = [SearchResult(ids_of(best.ids), best.scores), SearchResult(ids_of(reached), own)]
            results.append(merge([hits, *more], k))
        short = [place for place, hits in enumerate(results) if len(hits.ids) < wanted]
        compared = compare_every_row(self.part, queries[short], k, self.may_be_hits) if short else []
        for place, hits in zip(short, compared, strict=True):
            results[place] = hits
        return results

    def read(
        self, store: Any, ids_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return places and rows [n, d] that may be hits, drawn evenly over the graph; say so the first time."""
        with self.lock:
            if self.found is None:
                logger.warning(
                    "%s: its graph is in pieces, so that a search reached fewer rows than were asked for; such "
                    "searches are continued from other rows, and may miss some of the best (an index of lists, IVF, "
                    "has no pieces)",
                    self.part.name or "the index",
                )
                places = np.unique(np.linspace(0, int(store.ntotal) - 1, ROWS_DRAWN).astype(np.int64))
                places = places[self.may_be_hits(ids_of(places))]
                self.found = places, store.reconstruct_batch(places)
            return self.found


def best_of(places: NDArray[np.int64], scores: NDArray[np.float32], count: int) -> SearchResult:
    """Return the places of the highest scores, best first."""
    some = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
    some = some[np.argsort(-scores[some])]
    return SearchResult(places[some], scores[some])


def enter(graph: Any, query: NDArray[np.float32], entries: SearchResult, k: int) -> NDArray[np.int64]:
    """Return the places of up to k rows that links of a graph lead to from the best entries, which are places."""
    scores, nearest = entries.scores[:ENTRIES], entries.ids[:ENTRIES].astype(np.int32)
    of_l2 = graph.metric_type == faiss.METRIC_L2  # whose scores are 1 - d^2 / 2
    far = (2 - 2 * scores if of_l2 else -scores).astype(np.float32)
    distances, labels = np.empty(k, np.float32), np.empty(k, np.int64)
    parameters = faiss.SearchParametersHNSW()
    parameters.efSearch = max(k, len(nearest))  # with a shorter queue it stops at the first entries
    at, *rest = [faiss.swig_ptr(each) for each in (query, nearest, far, distances, labels)]
    graph.search_level_0(1, at, k, *rest, len(nearest), ENTER_ALL_AT_ONCE, parameters)
    return labels[labels >= 0]
