"""What faiss returns, as hits: no padding, no empty rows, the earlier row first if scores are equal."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.files import OpenPart


class SearchResult(msgspec.Struct, frozen=True):
    """Hits in order of decreasing score."""

    ids: NDArray[np.int64]  # [k]
    scores: NDArray[np.float32]  # [k], inner products


def clean_all(
    ids: NDArray[np.int64], scores: NDArray[np.float32], excluded: NDArray[np.int64], part: OpenPart
) -> list[SearchResult]:
    """Return the hits of each query [q, k] as ids of the whole index and inner products of unit vectors."""
    hits = zip(ids, scores, strict=True)
    if len(excluded) or part.first_row or part.index.metric_type == faiss.METRIC_L2 or not ids.size:
        return [clean(*some, excluded, part) for some in hits]
    if ids.min() < 0 or (scores[:, 1:] == scores[:, :-1]).any():
        return [clean(*some, excluded, part) for some in hits]
    return [SearchResult(*some) for some in hits]  # usually there is nothing to clean


def clean(
    ids: NDArray[np.int64], scores: NDArray[np.float32], excluded: NDArray[np.int64], part: OpenPart
) -> SearchResult:
    """Return the hits of one query."""
    hits = drop_missing(ids, scores)
    hits = SearchResult(hits.ids + part.first_row, hits.scores)
    if len(excluded):
        kept = ~np.isin(hits.ids, excluded)
        hits = SearchResult(hits.ids[kept], hits.scores[kept])
    # |a - b|^2 = 2 - 2ab
    similar = 1 - hits.scores / 2 if part.index.metric_type == faiss.METRIC_L2 else hits.scores
    return SearchResult(*earlier_first(hits.ids, similar))


def earlier_first(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return hits, sorted by score already, with the earlier row first if scores are equal."""
    if not (scores[1:] == scores[:-1]).any():
        return ids, scores
    order = np.lexsort((ids, -scores))
    return ids[order], scores[order]


def merge(found: Sequence[SearchResult], k: int) -> SearchResult:
    """Return the best hits of several parts, each row once."""
    ids, scores = (np.concatenate([getattr(hits, name) for hits in found]) for name in ("ids", "scores"))
    order = np.lexsort((ids, -scores))
    ids, scores = ids[order], scores[order]
    first = np.sort(np.unique(ids, return_index=True)[1])[:k]
    return SearchResult(ids[first], scores[first])


def drop_missing(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> SearchResult:
    """Remove the ids -1 with which faiss pads short results."""
    found = ids >= 0
    return SearchResult(ids[found], scores[found])


def empty_result() -> SearchResult:
    return SearchResult(np.empty(0, np.int64), np.empty(0, np.float32))
