"""Tries a kind that the user names by a key of faiss on a sample: what it finds, and its size, memory and time.

Only faiss knows such a kind, so sizes and times are measured on two small indices, and extrapolated to all rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from clip_retrieval.index.building.code_stores import code_bytes, find_store
from clip_retrieval.index.building.listed_files import is_listed
from clip_retrieval.index.building.named_kinds import OPQ_SHARE, polysemous_seconds, train_quickly
from clip_retrieval.index.building.parts import add_rows
from clip_retrieval.index.measuring.rehearsal import Rehearsal
from clip_retrieval.index.planning.costs import (
    LINKING_POWER,
    PRODUCTS_A_SECOND,
    ROWS_OF_PART,
    ROWS_TO_ADD,
    SAMPLE_COPIES,
    measuring_seconds,
    program_bytes,
)
from clip_retrieval.index.planning.expected import DEPTH_POWER, SLOWNESS_POWER, find_best
from clip_retrieval.index.planning.measured import (
    DOUBLINGS,
    GRAPH_EFFORTS,
    GRAPH_SAMPLE,
    HITS,
    LIST_EFFORTS,
    SHARE_EFFORTS,
    Effort,
    extrapolate,
    scale_depth,
)
from clip_retrieval.index.planning.plan import LISTS
from clip_retrieval.index.planning.shapes import Plan, Problem
from clip_retrieval.search.files import BYTES_AT_ONCE
from clip_retrieval.search.settings import settings_of
from clip_retrieval.search.stored_settings import set_settings
from clip_retrieval.search.tree import has_graph

QUANTIZER_DEPTH = 128  # in the graph over very many lists
KMEANS_STEPS = 10  # of faiss, for lists


@dataclass(frozen=True)
class Tried:
    """A small index of a kind, and its measurements."""

    index: Any
    rows: int
    lists: int  # all of its IVF
    empty_bytes: int
    filled_bytes: int
    train_seconds: float
    add_seconds: float
    outcomes: Mapping[Effort, tuple[float, float]]  # recall@10, and milliseconds of one core for a query

    @property
    def row_bytes(self) -> float:
        return (self.filled_bytes - self.empty_bytes) / self.rows


def measure_given(rehearsal: Rehearsal, plan: Plan) -> Plan:
    """Return the plan of a given key with its costs and recall; raises ConfigError if faiss cannot make it."""
    problem, count = rehearsal.problem, len(rehearsal.rows)
    if "HNSW" in LISTS.sub("", plan.given_key).replace("_HNSW", "") or "NSG" in plan.given_key:
        count = min(count, GRAPH_SAMPLE)
    few, many = (try_given(rehearsal, plan, rows) for rows in (count >> DOUBLINGS, count))
    growth = problem.rows / count
    outcomes = [
        (extrapolate(few.outcomes.get(effort, found)[0], found[0], math.log2(max(1, growth))), found[1] * slower)
        for effort, found in many.outcomes.items()
        for slower in [slowness(many, effort, growth)]
    ]
    in_time = [found for found in outcomes if found[1] <= problem.bounds.max_query_ms]
    recall, query_ms = find_best(in_time or [min(outcomes, key=lambda found: found[1])], problem)
    index_bytes = continued_bytes(few, many, plan, problem)
    return replace(
        plan,
        index_bytes=index_bytes,
        peak_bytes=continued_peak(many, plan, problem, index_bytes),
        seconds=continued_seconds(many, plan, problem),
        recall=recall,
        query_ms=query_ms,
        measured_on=count,
    )


def try_given(rehearsal: Rehearsal, plan: Plan, count: int) -> Tried:
    """Build the kind for the first `count` rows, with lists in proportion to the root of their number."""
    share = math.sqrt(count / rehearsal.problem.rows)
    key = LISTS.sub(lambda found: f"IVF{scale(int(found[1]), share)}", plan.given_key)
    begin = time.process_time()
    index = train_quickly(replace(plan, given_key=key), rehearsal.rows)
    trained, empty_bytes = time.process_time(), count_bytes(index)
    begin_adding = time.process_time()
    for start in range(0, count, ROWS_TO_ADD):
        some = rehearsal.rows[start : min(start + ROWS_TO_ADD, count)]
        add_rows(index, some, start, np.arange(len(some)))
    return Tried(
        index=index,
        rows=count,
        lists=count_lists(key),
        empty_bytes=empty_bytes,
        filled_bytes=count_bytes(index),
        train_seconds=trained - begin,
        add_seconds=time.process_time() - begin_adding,
        outcomes=ask(rehearsal, index, count),
    )


def ask(rehearsal: Rehearsal, index: Any, count: int) -> dict[Effort, tuple[float, float]]:
    found = {}
    for effort, settings in list_settings(index, rehearsal.problem):
        set_settings(index, settings)
        begin = time.process_time()
        recall = rehearsal.recall_of(index, count)
        found[effort] = recall, 1000 * (time.process_time() - begin) / len(rehearsal.queries)
    return found


def list_settings(index: Any, problem: Problem) -> Iterator[tuple[Effort, dict[str, int]]]:
    """Yield the settings of the kind to try, from fast to slow."""
    known = settings_of(index)
    if "nprobe" not in known and has_graph(index):
        depths = {effort: scale_depth(effort.breadth, index.ntotal, problem) for effort in GRAPH_EFFORTS}
        told = [effort for effort in GRAPH_EFFORTS if depths[effort] >= HITS]
        yield from ((effort, {"efSearch": depths[effort]}) for effort in told or GRAPH_EFFORTS[-1:])
        return
    ivf = faiss.try_extract_index_ivf(index) if "nprobe" in known else None
    lists = 1 if ivf is None else int(ivf.nlist)
    tried: list[dict[str, int]] = []
    for effort in (*LIST_EFFORTS, *SHARE_EFFORTS):
        wanted = {
            "nprobe": effort.breadth_in(lists),
            "k_factor_rf": effort.factor,
            "quantizer_efSearch": QUANTIZER_DEPTH,
        }
        settings = {name: value for name, value in wanted.items() if name in known}
        if settings not in tried and effort.breadth <= max(1, lists // 2):
            tried.append(settings)
            yield effort, settings


def scale(lists: int, share: float) -> int:
    return max(1, round(lists * share))


def count_lists(key: str) -> int:
    return max([0, *(int(count) for count in LISTS.findall(key))])


def count_bytes(index: Any) -> int:
    """Return the size of an index's file."""
    sizes = [0]

    def count(piece: bytes) -> int:
        sizes[0] += len(piece)
        return len(piece)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count, BYTES_AT_ONCE))
    return sizes[0]


def slowness(tried: Tried, effort: Effort, growth: float) -> float:
    """Return how many times as long a search of all rows takes as one of the sample, with the same settings."""
    if tried.lists:
        return growth if effort.share else math.sqrt(growth)
    return float(growth ** (SLOWNESS_POWER + DEPTH_POWER)) if has_graph(tried.index) else growth


def continued_bytes(few: Tried, many: Tried, plan: Plan, problem: Problem) -> int:
    """Return the size of the index of all rows: what was trained, more lists, and the rows."""
    more = many.lists - few.lists
    list_bytes = (many.empty_bytes - few.empty_bytes) / more if more else 0
    trained = many.empty_bytes + list_bytes * (count_lists(plan.given_key) - many.lists)
    return int(trained + many.row_bytes * problem.rows)


def continued_peak(tried: Tried, plan: Plan, problem: Problem, index_bytes: int) -> int:
    """Return the peak memory of building: of training, or of everything that is not streamed into the file."""
    store = find_store(tried.index)
    in_file = 0.0 if store is None else code_bytes(store) * problem.rows
    if is_listed(tried.index):  # parts are merged from file to file
        in_file = tried.row_bytes * max(0, problem.rows - ROWS_OF_PART)
    training = SAMPLE_COPIES * 4 * plan.sample_rows * plan.dim
    block = 16 * ROWS_TO_ADD * plan.dim
    return int(program_bytes(problem) + max(training, 1.05 * (index_bytes - in_file) + block))


def continued_seconds(tried: Tried, plan: Plan, problem: Problem) -> float:
    """Return about how long building and measuring take."""
    growth, speed = problem.rows / tried.rows, problem.cores * PRODUCTS_A_SECOND
    lists = count_lists(plan.given_key)
    training = tried.train_seconds * plan.sample_rows / tried.rows / problem.cores
    training += KMEANS_STEPS * plan.sample_rows * max(0, lists - tried.lists) * plan.dim / speed
    if "OPQ" in plan.given_key:
        training /= OPQ_SHARE
    training += polysemous_seconds(plan) / problem.cores
    linking = growth**LINKING_POWER if has_graph(tried.index) else 1
    adding = tried.add_seconds / problem.cores * growth * linking
    adding += problem.rows * plan.dim * max(0, lists - tried.lists) / speed
    return training + adding + measuring_seconds(plan, problem)
