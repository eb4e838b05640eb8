"""Tries planned kinds on a sample of the vectors to index, before the index is built.

Promises of plans are fitted to CLIP embeddings, and other vectors may be found far less well. Some of the sampled rows
are held out and used as queries, together with rows of the other modality. The rest is indexed, in a number of lists
that suits its size, and compared with the exact answers. The same folder gives the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.index.building.parts import add_rows
from clip_retrieval.index.building.training import train_index
from clip_retrieval.index.measuring.queries import draw_rows
from clip_retrieval.index.planning.costs import ROWS_TO_ADD
from clip_retrieval.index.planning.measured import (
    DOUBLINGS,
    GRAPH_SAMPLE,
    HITS,
    QUICK_MS,
    ROWS_TO_CHECK,
    Effort,
    Recalls,
    list_efforts_of,
    scale_depth,
    with_measured,
)
from clip_retrieval.index.planning.shapes import Plan, Problem, count_lists
from clip_retrieval.search.stored_settings import set_settings

HELD_OUT = 192  # rows of each modality that are queries: they give recall of their ten neighbors to about 0.015
ASKED_ROWS = 8_192  # rows of each modality for whose directions codes are made exact
SAMPLE_COPIES = 4  # of the sample in fp32: itself, the rotated one for training, and the index's copy
TOLERANCE = 1e-6  # of scores: equal rows must count as equal

Rows = NDArray[np.float32]  # [n, d]


@dataclass(frozen=True)
class Rehearsal:
    """Rows to index, queries that are not among them, and vectors like future queries."""

    rows: Rows
    queries: Rows
    asked: Rows
    problem: Problem
    known: dict[str, Plan] = field(default_factory=dict)  # measured plans by key
    floors: dict[int, Rows] = field(default_factory=dict)  # by the number of rows

    def measure(self, plan: Plan) -> Plan:
        """Return the plan with the recall to expect for these vectors."""
        if plan.key not in self.known:
            count = self.count_rows(plan)
            many = self.recalls(plan, count)
            few = self.recalls(plan, count >> DOUBLINGS) if count < self.problem.filled_rows else many
            self.known[plan.key] = with_measured(plan, self.problem, few, many, count)
        return self.known[plan.key]

    def count_rows(self, plan: Plan) -> int:
        """Return how many rows a plan is tried on: fewer for a graph, whose rows take a millisecond each to link."""
        if plan.kind == "graph" and self.problem.bounds.max_query_ms > QUICK_MS:
            return min(len(self.rows), GRAPH_SAMPLE)
        return len(self.rows)

    def recalls(self, plan: Plan, count: int) -> Recalls:
        """Build the plan for the first `count` rows; return recall@10 by effort."""
        index, lists = self.build(plan, self.rows[:count]), scale_lists(plan, self.problem, count)
        found = {}
        for effort in list_efforts_of(plan, scale_lists(plan, self.problem, len(self.rows) >> DOUBLINGS)):
            here = effort
            if plan.kind == "graph":
                here = replace(effort, breadth=scale_depth(effort.breadth, count, self.problem))
                if here.breadth < HITS:  # faiss keeps as many candidates as hits at least
                    continue
            set_settings(index, settings_for(plan, here, lists))
            found[effort] = self.recall_of(index, count)
        return found

    def recall_of(self, index: Any, count: int) -> float:
        """Return recall@10 of an index of the first `count` rows; equal rows count as equal."""
        rows, floor = self.rows[:count], self.floor(count)
        _, ids = index.search(self.queries, min(HITS, count))
        return float(((self.scores(rows, ids) >= floor) & (ids >= 0)).mean())

    def floor(self, count: int) -> Rows:
        """Return the least inner product [q, 1] that an answer among the first `count` rows must have."""
        if count not in self.floors:
            rows = self.rows[:count]
            _, ids = faiss.knn(self.queries, rows, min(HITS, count), metric=faiss.METRIC_INNER_PRODUCT)
            self.floors[count] = self.scores(rows, ids)[:, -1:] - TOLERANCE
        return self.floors[count]

    def scores(self, rows: Rows, ids: NDArray[np.int64]) -> Rows:
        """Return the inner products [q, k] of each query with its answers."""
        products: Rows = np.einsum("qd,qkd->qk", self.queries, rows[ids])
        return products

    def build(self, plan: Plan, rows: Rows) -> Any:
        lists = scale_lists(plan, self.problem, len(rows))
        small = replace(plan, rows=len(rows), lists=lists, sample_rows=len(rows))
        index = train_index(small, rows.copy(), self.asked)
        for start in range(0, len(rows), ROWS_TO_ADD):
            some = rows[start : start + ROWS_TO_ADD]
            add_rows(index, some, start, np.arange(len(some)))
        return index


def scale_lists(plan: Plan, problem: Problem, rows: int) -> int:
    """Return how many lists a plan has for fewer rows: in the same ratio to the usual number as for all rows."""
    if not plan.lists:
        return 0
    return max(1, round(count_lists(rows) * plan.lists / count_lists(problem.filled_rows)))


def settings_for(plan: Plan, effort: Effort, lists: int) -> dict[str, int]:
    if plan.kind == "graph":
        return {"efSearch": effort.breadth}
    if plan.kind == "exact":
        return {}
    return {"nprobe": effort.breadth_in(lists)} | ({"k_factor_rf": effort.factor} if plan.kind == "refined" else {})


def rehearse(vectors: Vectors, problem: Problem, *, least: int | None = None) -> Rehearsal | None:
    """Draw the sample; None if plans need no check, or if rows cannot be read one by one.

    Without `least`, only large builds are checked.
    """
    bounds = problem.bounds
    least = ROWS_TO_CHECK if least is None else least
    affordable = bounds.available_bytes // 4 // (4 * problem.dim * SAMPLE_COPIES)
    count = min(bounds.plan_sample, affordable, problem.filled_rows - HELD_OUT)
    if problem.rows < least or not vectors.is_here or count < min(2 * HELD_OUT, bounds.plan_sample or 1):
        return None
    drawn = [draw_rows(vectors, count + HELD_OUT)[1]]
    others = [other for other in bounds.asked if other is not vectors and other.dim == vectors.dim and other.is_here]
    drawn += [rows for _, rows in (draw_rows(other, ASKED_ROWS + HELD_OUT) for other in others) if len(rows) > 1]
    if len(drawn[0]) < 2 * HELD_OUT:  # hardly any row is filled
        return None
    held = [min(HELD_OUT, len(rows) // 2) for rows in drawn]
    kept = [rows[:-count] for rows, count in zip(drawn, held, strict=True)]
    queries = np.concatenate([rows[-count:] for rows, count in zip(drawn, held, strict=True)])
    fewest = min(ASKED_ROWS, *(len(rows) for rows in kept))
    return Rehearsal(kept[0], queries, np.concatenate([rows[:fewest] for rows in kept]), problem)
