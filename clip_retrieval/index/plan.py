"""What to build: of all kinds of index that fit the bounds, the one that finds most in the time of a query. Pure.

What a kind costs and finds is reckoned in `costs.py`; what the built index does is measured after every build.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.costs import (
    LEAST_SAMPLE,
    SAMPLE_COPIES,
    SCALAR_RECALL,
    count_sample,
    time_of_query,
    with_cost,
)
from clip_retrieval.index.shapes import Plan, Problem
from clip_retrieval.sizes import in_bytes

SCAN_BYTES = 32  # of 4-bit codes that only have to name what is compared finer
LEAST_CODE_BYTES = 4
MOST_LISTS = 32_768
LISTS_PER_ROOT = 1.2  # lists for each square root of the rows
ROWS_FOR_LISTS = 5_000  # up to which comparing with every row is as fast as anything else
MARGIN = 0.3  # of what a wanted recall lacks
ROWS_PER_CENTROID = 39  # that faiss asks k-means to have
LISTS, BOOKS = re.compile(r"IVF(\d+)"), re.compile(r"(?:PQ|RQ|LSQ|IMI)\d+(?:x(\d+))?(?![\dx])")
CODE_BITS = 8
RECALL_OF_MILLISECOND = 0.001  # that a faster index may find less


def make_plan(problem: Problem) -> Plan:
    """Return the plan to follow; raises IndexBuildError that names the nearest bounds where nothing fits."""
    plans = list_plans(problem)
    fitting = [plan for plan in plans if fits(plan, problem)]
    if not fitting:
        raise IndexBuildError(explain_misfit(problem, plans))
    wanted = problem.wanted_recall
    quick = [plan for plan in fitting if not is_slow(plan, problem)]
    enough = [plan for plan in quick if wanted is not None and plan.recall >= to_expect(wanted)]
    if enough:
        return min(enough, key=lambda plan: plan.index_bytes)
    return best_in_time(fitting, problem)


def given_plan(problem: Problem, key: str) -> Plan:
    """Return the plan of a key that somebody wants; what it costs is not known before it is built."""
    usual = count_sample(count_lists(problem.filled_rows), problem)
    affordable = int(problem.available_bytes / 4 / (4 * problem.dim * SAMPLE_COPIES))
    needed = min(ROWS_PER_CENTROID * count_centroids(key), affordable)
    return Plan("given", problem.rows, problem.dim, given_key=key, sample_rows=min(problem.rows, max(usual, needed)))


def count_centroids(key: str) -> int:
    """Return how many centroids the largest k-means of a key of faiss looks for; 1 where it has none."""
    lists = [int(count) for count in LISTS.findall(key)]
    books = [1 << int(bits or CODE_BITS) for bits in BOOKS.findall(key)]
    return max([1, *lists, *books])


def fits(plan: Plan, problem: Problem) -> bool:
    return plan.index_bytes <= problem.max_index_bytes and plan.peak_bytes <= problem.available_bytes


def is_slow(plan: Plan, problem: Problem) -> bool:
    """Say whether a query takes longer than it may; among few rows there is nothing faster than all of them."""
    return plan.query_ms > 1.001 * time_of_query(problem) and plan.rows > ROWS_FOR_LISTS


def to_expect(wanted: float) -> float:
    """Return the recall that a plan has to promise, so that the index has the wanted one: plans are not exact."""
    return wanted + MARGIN * (1 - wanted)


def worth(plan: Plan) -> float:
    """Return the recall, less what a faster index may find less."""
    return plan.recall - RECALL_OF_MILLISECOND * plan.query_ms


def list_plans(problem: Problem) -> list[Plan]:
    """Return what could be built, with its cost, within the bounds or not; the best of each kind."""
    return list(shapes(problem))


def shapes(problem: Problem) -> Iterator[Plan]:
    rows, dim = problem.rows, problem.dim
    for store in SCALAR_RECALL:
        sample_rows = 0 if store == "fp32" else min(rows, LEAST_SAMPLE)
        yield with_cost(Plan("exact", rows, dim, store, sample_rows=sample_rows), problem)
    if rows <= ROWS_FOR_LISTS:
        return
    lists = count_lists(problem.filled_rows)
    coded = Plan("coded", rows, dim, None, lists, sample_rows=count_sample(lists, problem))
    refined = replace(coded, kind="refined", code_bytes=min(SCAN_BYTES, max(2, dim // 8)), bits=4)
    yield with_cost(replace(refined, store="fp16"), problem)
    yield with_cost(replace(refined, store="SQ8"), problem)
    if dim > 1:
        yield from choose_length(lambda count: replace(refined, store="codes", store_bytes=count), dim - 1, problem)
    yield from choose_length(lambda count: replace(coded, code_bytes=count), dim, problem)


def choose_length(of_length: Callable[[int], Plan], most: int, problem: Problem) -> Iterator[Plan]:
    """Yield the plan with the codes that are worth most within the bounds, else the shortest.

    With a wanted recall, the smallest plan that is expected to find it follows.
    """
    lengths = range(min(LEAST_CODE_BYTES, most), most + 1)
    plans = [with_cost(of_length(count), problem) for count in lengths]
    fitting = [plan for plan in plans if fits(plan, problem)]
    yield best_in_time(fitting, problem) if fitting else min(plans, key=lambda plan: plan.index_bytes)
    enough = [plan for plan in fitting if problem.wanted_recall and plan.recall >= to_expect(problem.wanted_recall)]
    if enough:
        yield min(enough, key=lambda plan: plan.index_bytes)


def best_in_time(plans: Iterable[Plan], problem: Problem) -> Plan:
    return max(plans, key=lambda plan: (not is_slow(plan, problem), worth(plan), -plan.index_bytes))


def count_lists(rows: int) -> int:
    """Return how many lists so many rows are to be in: a power of two, but for a handful of rows."""
    return min(MOST_LISTS, rows, max(16, 1 << round(math.log2(LISTS_PER_ROOT * math.sqrt(rows)))))


def explain_misfit(problem: Problem, plans: list[Plan]) -> str:
    """Say what the least demanding index would take."""
    small = min(plans, key=lambda plan: max(plan.index_bytes / max(1, problem.max_index_bytes),
                                            plan.peak_bytes / max(1, problem.available_bytes)))  # fmt: skip
    least, memory = megabytes(small.index_bytes), megabytes(small.peak_bytes)
    return (
        f"no index of {problem.rows:,} x {problem.dim} vectors fits into max_index_memory_usage "
        f"{in_bytes(problem.max_index_bytes)} and current_memory_available "
        f"{in_bytes(problem.available_bytes)}; the nearest that can be built is {small.key}, with "
        f"--max_index_memory_usage {least}MB --current_memory_available {memory}MB"
    )


def megabytes(count: float) -> int:
    return math.ceil(count / 1e6)
