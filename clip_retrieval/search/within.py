"""Search restricted to some rows of an index; it returns k hits if k of these rows can be hits.

An approximate search with the usual settings misses most of a small subset: the lists it scans hold few of its rows.
So the fewer rows are allowed, the more is scanned, and up to a thousand rows are all compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.search.every_row import compare_every_row
from clip_retrieval.search.index import Index
from clip_retrieval.search.results import SearchResult, empty_result, merge
from clip_retrieval.search.settings import Settings, format_settings
from clip_retrieval.search.tree import has_graph
from clip_retrieval.words import counted

Method = Literal["none", "exact", "widened"]

EXACT_ROWS = 1_000  # up to this many, comparing every row is as fast as the narrowest approximate search
GRAPH_ROWS = 20_000  # up to this many, comparing every row is faster than a graph search, which visits other rows too
MOST_STORED = 20_000  # most rows to read from the stored embeddings


@dataclass(frozen=True)
class Within:
    """The rows that are searched, and the stored embeddings of the whole index if they are open."""

    rows: NDArray[np.int64]  # ids, ascending
    stored: Vectors | None = None
    every_row: bool = False  # the search must not miss any of them: all are compared


@dataclass(frozen=True)
class Allowed:
    """The rows that may be hits, which are the ones with an embedding."""

    ids: NDArray[np.int64]  # ascending
    row_count: int  # rows of the whole index

    @property
    def share(self) -> float:
        return len(self.ids) / max(1, self.row_count)

    def mask(self) -> NDArray[np.bool_]:
        mask = np.zeros(self.row_count, np.bool_)
        mask[self.ids] = True
        return mask


@dataclass(frozen=True)
class FoundWithin:
    """Hits of each query, and how they were found among the allowed rows."""

    hits: list[SearchResult]
    method: Method
    kept: int
    settings: Settings

    def sentence(self) -> str:
        """Return in a few words how the hits were found."""
        if self.method == "none":
            return "no row meets the condition"
        how = "all of them compared" if self.method == "exact" else f"searched with {format_settings(self.settings)}"
        return f"{counted(self.kept, 'row')} kept, {how}"


def search_within(
    index: Index,
    queries: NDArray[np.float32],
    k: int,
    within: Within,
    settings: Settings | None = None,
) -> FoundWithin:
    """Return up to k hits among the rows of `within` for each query [q, d].

    There are min(k, rows that have an embedding) hits for any kind of index. Few rows are compared one by one: by the
    stored embeddings if they are given, else by the codes of the index.
    """
    allowed = Allowed(np.setdiff1d(within.rows, index.empty_rows, assume_unique=True), index.row_count)
    chosen = index.settings_for(k) | index.checked(settings or Settings())
    if not len(allowed.ids):
        return FoundWithin([empty_result() for _ in queries], "none", 0, chosen)
    wanted = min(k, len(allowed.ids))
    if within.stored is not None and len(allowed.ids) <= MOST_STORED:
        vectors = read_rows(within.stored, allowed.ids)
        hits = [best_of(allowed.ids, vectors @ query, wanted) for query in queries]
        return FoundWithin(hits, "exact", len(allowed.ids), chosen)
    most = GRAPH_ROWS if index.has_graph else EXACT_ROWS
    if len(allowed.ids) <= most or (within.every_row and index.has_graph):
        return FoundWithin(compare_all(index, queries, wanted, allowed), "exact", len(allowed.ids), chosen)
    wider = widen(index, chosen, allowed)
    if within.every_row:
        wider = index.with_all_lists(wider, settings or Settings())
    hits = index.search_allowed(queries, wanted, wider, allowed.mask())
    if min(len(found.ids) for found in hits) < wanted:
        return FoundWithin(compare_all(index, queries, wanted, allowed), "exact", len(allowed.ids), chosen)
    return FoundWithin(hits, "exact" if looks_at_all(index, wider) else "widened", len(allowed.ids), wider)


def widen(index: Index, settings: Settings, allowed: Allowed) -> Settings:
    """Return settings that scan as many allowed rows as the given ones scan rows without a restriction."""
    changed: dict[str, float] = {}
    if index.list_count and "nprobe" in index.known_settings:
        changed["nprobe"] = min(index.list_count, math.ceil(setting(index, settings, "nprobe") / allowed.share))
    if index.has_graph:
        changed["efSearch"] = min(index.row_count, math.ceil(setting(index, settings, "efSearch") / allowed.share))
    return settings | changed | deep_quantizer(index, changed)


def look_at_all(index: Index, k: int, allowed: Allowed) -> Settings:
    """Return settings with which faiss compares every allowed row."""
    changed: dict[str, float] = {}
    if index.list_count and "nprobe" in index.known_settings:
        changed["nprobe"] = index.list_count
        changed |= {name: 0 for name in ("max_codes",) if name in index.known_settings}
    if "k_factor_rf" in index.known_settings:
        changed["k_factor_rf"] = max(1.0, math.ceil(len(allowed.ids) / k))
    return index.settings | changed | deep_quantizer(index, changed)


def deep_quantizer(index: Index, changed: dict[str, float]) -> dict[str, float]:
    """Return the efSearch that makes a graph of centroids return this many lists."""
    name = "quantizer_efSearch"
    if name not in index.known_settings or "nprobe" not in changed:
        return {}
    return {name: max(setting(index, index.settings, name), changed["nprobe"])}


def looks_at_all(index: Index, settings: Settings) -> bool:
    """Say whether every row is compared: in all lists, or in an index without lists or graph."""
    if index.has_graph or "k_factor_rf" in index.known_settings:
        return False
    if "max_codes" in index.known_settings and setting(index, settings, "max_codes"):
        return False
    return not index.list_count or settings.get("nprobe", 0) >= index.list_count


def setting(index: Index, settings: Settings, name: str) -> float:
    return settings.get(name, index.own_settings[name])


def compare_all(index: Index, queries: NDArray[np.float32], k: int, allowed: Allowed) -> list[SearchResult]:
    """Return the best k of the allowed rows for each query, by comparing the index's codes of each row.

    faiss compares them, except for graphs.
    """
    graphs = [part for part in index.parts if has_graph(part.index)]
    others = [part for part in index.parts if not has_graph(part.index)]
    mask = allowed.mask()
    of_parts = [
        compare_every_row(part, queries, k, lambda ids: (ids < len(mask)) & mask[np.minimum(ids, len(mask) - 1)])
        for part in graphs
    ]
    if others:
        of_parts.append(index.search_allowed(queries, k, look_at_all(index, k, allowed), mask, others))
    return [merge(hits, k) for hits in zip(*of_parts, strict=True)]


def best_of(ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> SearchResult:
    """Return the k rows with the highest scores, best first; of equal ones the first."""
    if k < len(scores):
        some = np.sort(np.argpartition(-scores, k - 1)[:k])
        ids, scores = ids[some], scores[some]
    order = np.argsort(-scores, kind="stable")
    return SearchResult(ids[order], scores[order])
