"""Plans whose recall was measured on a sample of the vectors to index: pure functions.

Recall falls as the number of rows grows; by how much depends on the vectors. It is measured on a sample and on a
quarter of it, and extrapolated to all rows in the logarithm of their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from clip_retrieval.index.planning.expected import DEPTH_POWER, find_best, time_graph, time_lists
from clip_retrieval.index.planning.plan import best_in_time, find_enough, fits, is_slow, list_plans, make_plan
from clip_retrieval.index.planning.shapes import Plan, Problem

ROWS_TO_CHECK = 200_000  # least rows of a build whose plan is checked: fewer are built as fast
DOUBLINGS = 2  # of the rows, between the two sizes that are measured
AS_PROMISED = 0.05  # recall that a plan may lose compared with CLIP embeddings before other plans are measured
REFINED_ROW_MS = 0.1e-3 / 512  # milliseconds for each row that is refined, and each of its dimensions
HITS = 10


@dataclass(frozen=True)
class Effort:
    """Settings of a search: lists probed, or depth in a graph, and rows refined for each hit."""

    breadth: int = 0
    factor: int = 1
    share: float = 0.0  # of the lists, instead of their number

    def breadth_in(self, lists: int) -> int:
        return self.breadth or max(1, round(self.share * lists))


# Refined rows grow with the lists, as when settings are tuned; most of all at the end, for codes with little
LIST_EFFORTS = (
    *(Effort(1, 4), Effort(2, 8), Effort(4, 8), Effort(8, 16), Effort(16, 16), Effort(32, 32)),
    *(Effort(64, 64), Effort(64, 256)),
)
# information. Vectors without clusters are not found in a few lists, but in a constant share of them.
SHARE_EFFORTS = tuple(Effort(factor=256, share=share) for share in (1 / 8, 1 / 4, 1 / 2))
GRAPH_EFFORTS = tuple(Effort(2**power) for power in range(4, 11))
GRAPH_SAMPLE = 8_192  # rows of a graph that is only tried: 2 to 5 s of a core, where 32,768 take up to a minute
QUICK_MS = 0.5  # faster queries search a graph at so little depth that fewer rows show nothing
Recalls = Mapping[Effort, float]  # recall@10 by effort
Measure = Callable[[Plan], Plan]  # a plan to the same plan with its recall measured


def choose_measured(problem: Problem, measure: Measure) -> Plan:
    """Return the plan to follow: the usual one if it finds what it promises, else the best of all by measured recall.

    Raises IndexBuildError if nothing fits.
    """
    plan = measure(make_plan(problem))
    if plan.promised is None or plan.recall >= plan.promised - AS_PROMISED:
        return plan
    plans = [measure(other) for other in list_plans(problem) if is_candidate(other, problem)]
    plans = plans or [plan]  # if even the quickest is slow
    return best_in_time(find_enough(plans, problem) or plans, problem)


def is_candidate(plan: Plan, problem: Problem) -> bool:
    """Say whether a plan might replace another one: it fits the bounds, and its queries are quick enough."""
    return fits(plan, problem) and not is_slow(plan, problem)


def with_measured(plan: Plan, problem: Problem, few: Recalls, many: Recalls, sample_rows: int) -> Plan:
    """Return the plan with the recall to expect for these vectors, and the time of the settings that find it.

    `few` and `many` were measured on a quarter of the sample and on all of it.
    """
    doublings = math.log2(max(1, problem.rows / sample_rows))
    outcomes = [
        (extrapolate(few.get(effort, recall), recall, doublings), time_effort(plan, problem, effort))
        for effort, recall in many.items()
    ]
    if not outcomes:
        return plan  # a sample of this size says nothing about it
    longest = problem.bounds.max_query_ms
    in_time = [outcome for outcome in outcomes if outcome[1] <= longest] or [min(outcomes, key=lambda o: o[1])]
    recall, query_ms = find_best(in_time, problem)
    return replace(plan, recall=recall, query_ms=query_ms, promised=plan.recall, measured_on=sample_rows)


def extrapolate(few: float, many: float, doublings: float) -> float:
    """Return the recall after some more doublings of the rows; `many` is the recall after DOUBLINGS from `few`.

    Odds of finding a neighbor change by about the same factor each time: random vectors of 512 dimensions, which no
    index serves well, lose 28 % of them, CLIP-like ones up to 18 %. More rows never find more here, to be careful.
    """
    slope = min(0.0, (log_odds(many) - log_odds(few)) / DOUBLINGS)
    if doublings == 0 or slope == 0:
        return many
    return 1 / (1 + math.exp(-log_odds(many) - slope * doublings))


def scale_depth(depth: int, rows: int, problem: Problem) -> int:
    """Return the depth of a search in a graph of fewer rows that finds about the same share of them.

    A graph of few rows has all of them near: the depth of a search of all rows would promise too much.
    """
    scaled: int = round(depth * min(1.0, rows / problem.filled_rows) ** DEPTH_POWER)
    return scaled


def log_odds(recall: float) -> float:
    kept = min(max(recall, 0.002), 0.998)  # a few hundred queries are not more exact
    return math.log(kept / (1 - kept))


def time_effort(plan: Plan, problem: Problem, effort: Effort) -> float:
    """Return the milliseconds of a query with some settings."""
    if plan.kind == "exact":
        return plan.query_ms
    start, step = time_graph(plan) if plan.kind == "graph" else time_lists(plan, problem)
    refined = HITS * effort.factor * plan.dim * REFINED_ROW_MS if plan.kind == "refined" else 0
    return start + effort.breadth_in(plan.lists) * step + refined


def list_efforts_of(plan: Plan, least_lists: int) -> Sequence[Effort]:
    """Return the settings to measure a plan with; probing most of the lists of a small index would show nothing."""
    if plan.kind == "exact":
        return (Effort(1),)
    if plan.kind == "graph":
        return GRAPH_EFFORTS
    few = [effort for effort in LIST_EFFORTS if effort.breadth <= max(1, least_lists // 2)]
    return [*few, *SHARE_EFFORTS]
