"""Chooses what to build: the kind within the bounds with the best recall in the query time. Pure functions.

Costs are in `costs.py`, recall and time in `expected.py`; the built index is measured after every build.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.planning.costs import LEAST_SAMPLE, ROWS_OF_PART, SAMPLE_COPIES, count_sample, with_cost
from clip_retrieval.index.planning.expected import RECALL_OF_MILLISECOND, SCALAR_RECALL, to_expect
from clip_retrieval.index.planning.shapes import MOST_LISTS, Plan, Problem, Store, count_lists
from clip_retrieval.words import bound_above, in_bytes

SCAN_BYTES = 32  # bytes of 4-bit codes, which only choose the candidates to refine
DIRECTIONS_AT_ONCE = 16  # that the processor compares, a byte each
LEAST_CODE_BYTES, MOST_LENGTHS = 4, 512  # shortest code in bytes, and most code lengths that are tried
WHOLE_STORES: tuple[Store, ...] = ("fp32", "fp16")
LONG_CODES, FINER = 96, 2  # codes of at least 96 bytes deserve twice as many lists as usual
MOST_EMPTY = 0.01  # share of a graph's rows: zero rows are far from all others, and many of them slow building down
ROWS_FOR_LISTS = 5_000  # up to this many, comparing with every row is as fast as any index
SMALLEST = 1.1  # the best index of up to this many times the size of the smallest one with the wanted recall is taken
ROWS_PER_CENTROID = 39  # rows for each centroid, below which faiss's k-means warns
LISTS, BOOKS = re.compile(r"IVF(\d+)"), re.compile(r"(?:PQ|RQ|LSQ|IMI)\d+(?:x(\d+))?(?![\dx])")
CODE_BITS = 8
RECALL_OF_DOUBLING = 0.002  # recall that is worth twice the build time
SHORT_SECONDS = 10.0  # build time that costs nothing
RECALL_OF_GRAPH = 0.003  # recall that a graph must gain: it cannot drop rows, nor fill them later


def make_plan(problem: Problem) -> Plan:
    """Return the plan to follow; raises IndexBuildError that names the nearest bounds if nothing fits."""
    plans = list_plans(problem)
    fitting = [plan for plan in plans if fits(plan, problem)]
    if not fitting:
        raise IndexBuildError(explain_misfit(problem, plans))
    quick = [plan for plan in fitting if not is_slow(plan, problem)]
    if not quick:
        return make_plan(problem.within(max_query_ms=min(plan.query_ms for plan in fitting)))
    enough = find_enough(quick, problem)
    if enough:
        least = min(plan.index_bytes for plan in enough)
        return best_in_time([plan for plan in enough if plan.index_bytes <= SMALLEST * least], problem)
    return best_in_time(quick, problem)


def given_plan(problem: Problem, key: str) -> Plan:
    """Return the plan of a given index key; its costs are unknown before it is built."""
    usual = count_sample(count_lists(problem.filled_rows), problem)
    affordable = int(problem.bounds.available_bytes / 4 / (4 * problem.dim * SAMPLE_COPIES))
    needed = min(ROWS_PER_CENTROID * count_centroids(key), affordable)
    return Plan("given", problem.rows, problem.dim, given_key=key, sample_rows=min(problem.rows, max(usual, needed)))


def count_centroids(key: str) -> int:
    """Return how many centroids the largest k-means of a key of faiss looks for; 1 if it has none."""
    lists = [int(count) for count in LISTS.findall(key)]
    books = [1 << int(bits or CODE_BITS) for bits in BOOKS.findall(key)]
    return max([1, *lists, *books])


def fits(plan: Plan, problem: Problem) -> bool:
    return plan.index_bytes <= problem.bounds.max_index_bytes and plan.peak_bytes <= problem.bounds.available_bytes


def is_slow(plan: Plan, problem: Problem) -> bool:
    """Say whether a query is too slow; few rows are never, as nothing is faster than comparing them all."""
    return plan.query_ms > 1.001 * problem.bounds.max_query_ms and plan.rows > ROWS_FOR_LISTS


def worth(plan: Plan) -> float:
    """Return a plan's score: its recall, minus penalties for query time, build time and being a graph."""
    building = RECALL_OF_DOUBLING * math.log2(1 + plan.seconds / SHORT_SECONDS)
    stiffness = RECALL_OF_GRAPH if plan.kind == "graph" else 0
    return plan.recall - RECALL_OF_MILLISECOND * plan.query_ms - building - stiffness


def list_plans(problem: Problem) -> list[Plan]:
    """Return the best plan of each kind with its costs, within the bounds or not."""
    return list(shapes(problem))


def shapes(problem: Problem) -> Iterator[Plan]:
    rows, dim = problem.rows, problem.dim
    for store in SCALAR_RECALL:
        sample_rows = 0 if store == "fp32" else min(rows, LEAST_SAMPLE)
        yield with_cost(Plan("exact", rows, dim, store, sample_rows=sample_rows), problem)
    if rows <= ROWS_FOR_LISTS:
        return
    if can_be_graph(problem):
        yield from (with_cost(Plan("graph", rows, dim, store), problem) for store in WHOLE_STORES)
    lists = count_lists(problem.filled_rows)
    coded = Plan("coded", rows, dim, None, lists, sample_rows=count_sample(lists, problem))
    refined = replace(coded, kind="refined", code_bytes=min(SCAN_BYTES, max(2, dim // 8)), bits=4)
    yield with_cost(replace(refined, store="fp16"), problem)
    yield with_cost(replace(refined, store="SQ8"), problem)
    yield from (with_cost(replace(coded, kind="listed", store=store), problem) for store in WHOLE_STORES)
    if dim > 1:
        yield from choose(problem, (replace(refined, store="codes", store_bytes=n) for n in lengths(dim - 1)))
    if dim > DIRECTIONS_AT_ONCE:
        steps = range(DIRECTIONS_AT_ONCE, dim, DIRECTIONS_AT_ONCE)
        yield from choose(problem, (replace(refined, store="PCA", store_bytes=n) for n in steps))
    finer = min(MOST_LISTS, FINER * lists) if lists > 1 else 1
    more = replace(coded, lists=finer, sample_rows=count_sample(finer, problem))
    codes = [replace(coded, code_bytes=n) for n in lengths(dim)]
    codes += [replace(more, code_bytes=n) for n in lengths(dim) if n >= LONG_CODES]
    yield from choose(problem, codes)


def can_be_graph(problem: Problem) -> bool:
    """Say whether a graph is possible: graphs cannot be merged, so it is built in one piece."""
    return (
        problem.rows <= ROWS_OF_PART
        and problem.files == 1
        and not problem.bounds.is_in_parts
        and problem.empty_rows <= MOST_EMPTY * problem.rows
    )


def lengths(most: int) -> range:
    """Return the code lengths to try, in bytes, at most MOST_LENGTHS."""
    return range(min(LEAST_CODE_BYTES, most), most + 1, max(1, most // MOST_LENGTHS))


def choose(problem: Problem, candidates: Iterable[Plan]) -> Iterator[Plan]:
    """Yield the plan with the best score within the bounds, else the smallest.

    With a wanted recall, the smallest plan that is expected to find it follows.
    """
    plans = [with_cost(plan, problem) for plan in candidates]
    fitting = [plan for plan in plans if fits(plan, problem)]
    yield best_in_time(fitting, problem) if fitting else min(plans, key=lambda plan: plan.index_bytes)
    enough = find_enough(fitting, problem)
    if enough:
        yield min(enough, key=lambda plan: plan.index_bytes)


def find_enough(plans: Iterable[Plan], problem: Problem) -> list[Plan]:
    """Return the plans that are expected to find a wanted recall."""
    wanted = problem.bounds.wanted_recall
    return [plan for plan in plans if wanted is not None and plan.recall >= to_expect(wanted)]


def best_in_time(plans: Iterable[Plan], problem: Problem) -> Plan:
    return max(plans, key=lambda plan: (not is_slow(plan, problem), worth(plan), -plan.index_bytes))


def explain_misfit(problem: Problem, plans: list[Plan]) -> str:
    """Describe the needs of the least demanding index."""
    small = min(plans, key=lambda plan: max(plan.index_bytes / max(1, problem.bounds.max_index_bytes),
                                            plan.peak_bytes / max(1, problem.bounds.available_bytes)))  # fmt: skip
    least, memory = bound_above(small.index_bytes), bound_above(small.peak_bytes)
    return (
        f"no index of {problem.rows:,} x {problem.dim} vectors fits into max_index_memory_usage "
        f"{in_bytes(problem.bounds.max_index_bytes)} and current_memory_available "
        f"{in_bytes(problem.bounds.available_bytes)}; the nearest that can be built is {small.key}, with "
        f"--max_index_memory_usage {least} --current_memory_available {memory}"
    )
