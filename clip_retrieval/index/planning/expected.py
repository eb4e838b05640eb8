"""Expected recall and query time of a planned index: pure functions.

Curves and constants are those of CLIP-like vectors and of one core, as measured (benchmarks/RESULTS.md): 200,000 and a
million rows of 512 dimensions, graphs from 20,000 on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

from clip_retrieval.index.planning.shapes import LISTS_FOR_GRAPH, Plan, Problem, Store, count_lists

RECALL_OF_MILLISECOND = 0.003  # recall that one millisecond of query time is worth
MARGIN = 0.3  # share of 1 - wanted_recall that a plan must promise on top, as plans are not exact

# Recall@10, mean of image and text queries.
Curve = Sequence[tuple[float, float]]
Shares = tuple[Curve, float]  # see `curve_of`
CODED_RECALL: Curve = ((0.0, 0.0), (0.25, 0.45), (0.6, 0.88), (1.4, 0.945), (3.5, 0.97), (8.0, 0.99))  # bits a dim
STORED_RECALL: Curve = (
    (0.0, 0.0), (0.25, 0.7), (0.5, 0.84), (1.0, 0.9), (2.0, 0.93), (3.0, 0.947), (4.0, 0.957), (6.7, 0.98),
    (8.0, 0.985),
)  # fmt: skip
PCA_RECALL: Curve = (
    (0.0, 0.0), (0.5, 0.78), (1.0, 0.882), (1.5, 0.911), (2.0, 0.928), (3.0, 0.937), (4.0, 0.95), (6.0, 0.961),
    (8.0, 0.977),
)  # fmt: skip
SCALAR_RECALL: dict[Store, float] = {"fp32": 1.0, "fp16": 0.999, "SQ8": 0.98, "SQ6": 0.93, "SQ4": 0.76}

# Share of the full recall when 2**x lists are probed: for queries of both modalities, and of the rows' own only.
LISTS_RECALL: Curve = (
    (0.0, 0.5), (1.0, 0.7), (2.0, 0.84), (3.0, 0.925), (4.0, 0.968), (5.0, 0.988), (6.0, 0.997), (7.0, 0.9995),
)  # fmt: skip
OWN_LISTS_RECALL: Curve = (
    (0.0, 0.56), (1.0, 0.72), (2.0, 0.84), (3.0, 0.913), (4.0, 0.953), (5.0, 0.978), (6.0, 0.991), (7.0, 0.9988),
)  # fmt: skip
REFINED_REACH = 0.75  # worth of a probed list if 4-bit codes pick its rows, since they miss some
FINER_REACH = 0.4  # a probed list is worth less with this power of how much shorter than usual it is
FINER_CODES = 0.045  # code bits count this share more for each halving of the list length

# Share of the full recall by efSearch, for a graph of GRAPH_ROWS rows.
GRAPH_RECALL: Curve = (
    (2.0, 0.7), (3.0, 0.83), (4.0, 0.914), (5.0, 0.961), (6.0, 0.984), (7.0, 0.996), (8.0, 0.998), (9.0, 0.999),
    (10.0, 0.9997),
)  # fmt: skip
OWN_GRAPH_RECALL: Curve = (
    (2.0, 0.85), (3.0, 0.93), (4.0, 0.974), (5.0, 0.991), (6.0, 0.995), (7.0, 0.9993), (8.0, 0.9998),
)  # fmt: skip
GRAPH_ROWS = 200_000
DEPTH_POWER = 0.55  # search depth grows with this power of the number of rows
SLOWNESS_POWER = 0.3  # a step takes longer with this power of the number of rows

DIMS_A_SECOND = 2e9  # dimensions that one core, under other load, compares in a scan of all rows
CODE_MS = 0.55e-6  # milliseconds to look up one 8-bit code
SCAN_MS = 0.15e-6  # milliseconds for each byte of two 4-bit codes, scanned 32 rows at a time
WHOLE_MS: dict[Store, float] = {"fp32": 0.36e-6, "fp16": 0.28e-6}  # milliseconds for each dimension of a row in a list
REFINED_MS = 0.001  # milliseconds to compare the best rows of one probed list again
QUERY_MS = 0.08  # milliseconds of any query, 0.05 of them in Python
CENTROID_MS = 0.08e-6  # milliseconds for each dimension of a centroid
COMPARED_CENTROIDS = 2_048  # upper bound of the cost once centroids are in a graph
TABLE_MS = 0.28e-3  # milliseconds for each dimension of a query's table for 8-bit codes
STEP_MS: dict[Store, float] = {"fp32": 0.004, "fp16": 0.0047}  # milliseconds, of GRAPH_ROWS rows of STEP_DIMS
STEP_DIMS = 512
START_MS, STEPS_TO_START = 0.065, 16
LEAST_DEPTH, MOST_DEPTH = 16, 1_024
MOST_LOOKED_INTO = 128  # most lists probed
LOG_2 = math.log(2)
ROUNDING = 1 + 1e-9  # factor of an effort that is to reach a recall, so rounding does not miss it


def expect(plan: Plan, problem: Problem) -> tuple[float, float]:
    """Return recall@10 and the milliseconds of a query, of one core.

    Assumes the cheapest settings whose gain justifies their time, within max_query_ms; with a wanted recall, the
    fastest ones that reach it.
    """
    if plan.kind == "exact":
        return ceiling(plan, problem), 1000 * plan.rows * plan.dim / DIMS_A_SECOND
    least, most = (LEAST_DEPTH, MOST_DEPTH) if plan.kind == "graph" else (1, min(plan.lists, MOST_LOOKED_INTO))
    start, step = time_graph(plan) if plan.kind == "graph" else time_lists(plan, problem)
    longest = min(most, max(least, (problem.bounds.max_query_ms - start) / step))
    most_found = ceiling(plan, problem)
    wanted = problem.bounds.wanted_recall
    share = None if wanted is None else to_expect(wanted) / most_found
    shares = curve_of(plan, problem)
    candidates = {longest, *list_efforts(shares, most_found / (RECALL_OF_MILLISECOND * step), share)}
    efforts = {min(longest, max(least, effort)) for effort in candidates}
    found = [(most_found * share_found(plan, shares, effort), start + effort * step) for effort in efforts]
    return find_best(found, problem)


def find_best(found: Sequence[tuple[float, float]], problem: Problem) -> tuple[float, float]:
    """Return the pair of recall and milliseconds whose recall is worth its time; see `expect`."""
    wanted = problem.bounds.wanted_recall
    enough = [outcome for outcome in found if wanted is not None and outcome[0] >= to_expect(wanted)]
    if enough:
        return min(enough, key=lambda outcome: outcome[1])
    return max(found, key=lambda outcome: outcome[0] - RECALL_OF_MILLISECOND * outcome[1])


def list_efforts(shares: Shares, worth: float, share: float | None) -> Iterator[float]:
    """Yield the efforts among which the best one is: on each line of the curve, where more gains less than it takes.

    `worth` is how much of the effort the whole recall is worth. With `share`, the effort that finds it follows.
    """
    curve, scale = shares
    for (low, least), (high, most) in pairwise(curve):
        best = worth * (most - least) / (high - low) / LOG_2
        lowest, highest = 2**low / scale, 2**high / scale
        yield lowest if best < lowest else min(highest, best)
        if share is not None and least < share <= most:
            yield ROUNDING * 2 ** (low + (high - low) * (share - least) / (most - least)) / scale


def to_expect(wanted: float) -> float:
    """Return the recall to plan for, which is above the wanted one since plans are not exact."""
    return wanted + MARGIN * (1 - wanted)


def time_graph(plan: Plan) -> tuple[float, float]:
    """Return the fixed milliseconds of a search, and the milliseconds of each step."""
    slowness = (plan.rows / GRAPH_ROWS) ** SLOWNESS_POWER
    step = STEP_MS[plan.store or "fp32"] * slowness * plan.dim / STEP_DIMS
    return START_MS + STEPS_TO_START * step, step


def time_lists(plan: Plan, problem: Problem) -> tuple[float, float]:
    """Return the fixed milliseconds of a search, and the milliseconds of each probed list."""
    start = QUERY_MS + CENTROID_MS * plan.width * min(
        plan.lists, COMPARED_CENTROIDS if plan.lists >= LISTS_FOR_GRAPH else plan.lists
    )
    rows = min(plan.rows, problem.filled_rows) / plan.lists
    if plan.kind == "listed":
        return start, rows * plan.dim * WHOLE_MS[plan.store or "fp32"]
    if plan.store == "codes":
        start += TABLE_MS * plan.stored_codes.width
    elif plan.store == "PCA":
        start += CENTROID_MS * plan.dim * plan.store_bytes
    if plan.kind == "refined":
        return start, rows * plan.code_bytes * SCAN_MS + REFINED_MS
    return start + TABLE_MS * plan.width, rows * plan.code_bytes * CODE_MS


def share_found(plan: Plan, shares: Shares, effort: float) -> float:
    """Return the share of the full recall for a number of probed lists, or a depth in a graph."""
    if plan.kind != "graph" and effort >= plan.lists:
        return 1.0
    curve, scale = shares
    return interpolate(curve, math.log2(effort * scale))


def curve_of(plan: Plan, problem: Problem) -> Shares:
    """Return the share found by the logarithm of the effort, and the factor to multiply an effort with."""
    if plan.kind == "graph":
        curve = GRAPH_RECALL if problem.asks_across else OWN_GRAPH_RECALL
        return curve, (plan.rows / GRAPH_ROWS) ** -DEPTH_POWER
    reach = REFINED_REACH if plan.kind == "refined" else fineness(plan, problem) ** -FINER_REACH
    return LISTS_RECALL if problem.asks_across else OWN_LISTS_RECALL, reach


def fineness(plan: Plan, problem: Problem) -> float:
    """Return the number of lists relative to the usual number."""
    return plan.lists / count_lists(problem.filled_rows)


def ceiling(plan: Plan, problem: Problem) -> float:
    """Return the recall of a search that looks at every row."""
    if plan.store in ("codes", "PCA"):
        curve = STORED_RECALL if plan.store == "codes" else PCA_RECALL
        return interpolate(curve, 8 * plan.store_bytes / plan.dim)
    if plan.store is not None:
        return SCALAR_RECALL[plan.store]
    bits = 8 * plan.code_bytes / plan.dim
    return interpolate(CODED_RECALL, bits * (1 + FINER_CODES * math.log2(fineness(plan, problem))))


def interpolate(curve: Curve, place: float) -> float:
    """Interpolate a curve linearly; constant before its first and after its last point."""
    if place <= curve[0][0]:
        return curve[0][1]
    if place > curve[-1][0]:
        return curve[-1][1]
    above = bisect_left(curve, (place,))
    (low, least), (high, most) = curve[above - 1], curve[above]
    return least + (most - least) * (place - low) / (high - low)
