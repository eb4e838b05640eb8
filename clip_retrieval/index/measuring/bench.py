"""Asks an index the drawn queries: all at once for its recall, and one after the other for its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.index.measuring.quality import Times
from clip_retrieval.index.measuring.queries import QuerySet
from clip_retrieval.index.measuring.truth import Ids, Rows, Truth
from clip_retrieval.index.measuring.tuning import SettingValues
from clip_retrieval.layout import Modality

TIMED_K = 10
WARM_UP = 3
LONGEST_SECONDS = 0.5  # bound of timing one modality, once FEWEST_TIMED queries were timed
FEWEST_TIMED = 5

Search = Callable[[Rows, int, SettingValues], Ids]  # queries [q, d] and k to ids [q, k], -1 if there are no more


@dataclass(frozen=True)
class Bench:
    """An index, its queries and their exact answers, by the queries' modality."""

    search: Search
    truths: Mapping[Modality, Truth]

    def first(self, count: int) -> Bench:
        """Return the bench with fewer queries of each modality."""
        return Bench(self.search, {modality: truth.first(count) for modality, truth in self.truths.items()})

    def recalls(self, settings: SettingValues, k: int) -> dict[Modality, float | None]:
        """Return recall@k by modality."""
        return {
            modality: truth.recall(answer(self.search, truth.queries, k, settings), k)
            for modality, truth in self.truths.items()
        }

    def milliseconds(self, settings: SettingValues, count: int) -> dict[Modality, NDArray[np.float64]]:
        """Return the time of each of up to `count` queries by modality, after some to warm up."""
        return {
            modality: time_queries(self.search, truth.queries.rows[:count], settings)
            for modality, truth in self.truths.items()
        }


def answer(search: Search, queries: QuerySet, k: int, settings: SettingValues) -> Ids:
    """Return the first k answers [q, k] without the queries' own rows.

    The own row takes a place among the k + 1 hits that are asked for, and one among the refined candidates, so these
    queries get no more candidates than others do.
    """
    if queries.own_ids is None:
        return search(queries.rows, k, settings)
    factor = settings.get("k_factor_rf")
    if factor is not None:
        settings = {**settings, "k_factor_rf": (k * factor + 1) / (k + 1)}
    ids = search(queries.rows, k + 1, settings)
    others = ids != queries.own_ids[:, None]
    others[others.all(axis=1), -1] = False
    kept: Ids = ids[others].reshape(len(ids), k)
    return kept


def time_queries(search: Search, queries: Rows, settings: SettingValues) -> NDArray[np.float64]:
    for query in queries[:WARM_UP]:
        search(query[None], TIMED_K, settings)
    taken: list[float] = []
    for query in queries:
        start = time.perf_counter()
        search(query[None], TIMED_K, settings)
        taken.append(1000 * (time.perf_counter() - start))
        if sum(taken) > 1000 * LONGEST_SECONDS and len(taken) >= FEWEST_TIMED:
            break
    return np.array(taken)


def summarize(milliseconds: NDArray[np.float64]) -> Times:
    return Times(
        float(milliseconds.mean()), float(np.percentile(milliseconds, 50)), float(np.percentile(milliseconds, 99))
    )
