"""Hits of several parts as hits of one index: ids count through, best first, equal ones by id. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from clip_retrieval.query.answer import Answer
from clip_retrieval.query.surprise import Spread
from clip_retrieval.search.results import SearchResult
from clip_retrieval.server.builds import Missing, Row

ALL_KEPT = 1e300  # `surprise` with which a part reports the spread of its scores and leaves nothing out


class Hit(msgspec.Struct):
    """A hit of a part, by the part's own id."""

    id: int
    similarity: float
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class Result(msgspec.Struct):
    """A part's answer to one query."""

    hits: list[Hit]
    how: list[str] = msgspec.field(default_factory=list)
    background: list[Spread] = msgspec.field(default_factory=list)


class Results(msgspec.Struct):
    """The answer of a part's /v1/search."""

    results: list[Result]
    partial: list[Missing] = msgspec.field(default_factory=list)  # of a part that is in parts itself


@dataclass(frozen=True)
class OfPart:
    """One part's answer to one query, with our ids."""

    number: int
    first_id: int
    row_count: int
    result: Result


def merge(parts: Sequence[OfPart], count: int) -> tuple[SearchResult, list[Row]]:
    """Return up to `count` hits of all parts, best first, and their metadata."""
    hits = [(part.first_id, hit) for part in parts for hit in part.result.hits]
    ids = np.array([first + hit.id for first, hit in hits], np.int64)
    scores = np.array([hit.similarity for _, hit in hits], np.float32)
    order = np.lexsort((ids, -scores))[:count]
    return SearchResult(ids[order], scores[order]), [hits[place][1].metadata for place in order]


def join_spreads(parts: Sequence[OfPart]) -> tuple[Spread, ...]:
    """Return the spread of the scores of unrelated rows, for all parts.

    A part with too few rows for a spread counts as the mean of the others.
    """
    known = [part for part in parts if part.result.background]
    share = sum(part.row_count for part in parts) / max(1, sum(part.row_count for part in known))
    spreads = [spread for part in known for spread in part.result.background]
    return tuple(replace(spread, row_count=share * spread.row_count) for spread in spreads)


def join_how(parts: Sequence[OfPart]) -> tuple[str, ...]:
    """Return how the rows that meet a condition were found: the first sentence of each part."""
    told = [(part.number, sentence) for part in parts for sentence in part.result.how[:1]]
    return tuple(sentence if len(parts) == 1 else f"part {number}: {sentence}" for number, sentence in told)


def without(found: Answer, rows: Sequence[int]) -> Answer:
    """Leave out rows that are in the query."""
    return found.pick(~np.isin(found.found.ids, rows)) if rows else found
