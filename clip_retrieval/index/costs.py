"""What an index costs and finds, before there is one: its size, memory and time, its recall, the time of a query. Pure.

Sizes are those of the files, or a little more. Memory and time are formulas whose constants were measured, and so is
the recall that a kind is expected to have (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from clip_retrieval.index.shapes import GRAPH_LINKS, LISTS_FOR_GRAPH, Codes, Plan, Problem, Store

HEADER_BYTES = 8_192
ID_BYTES = 8
BLOCK_OF_SCAN = 32  # rows that a list of 4-bit codes is filled up to
ROWS_AT_ONCE = 8_192  # that are added at once; the C library uses memory of that size again
ROWS_OF_PART = 1_000_000  # that a killed build may have to add again
ROWS_PER_LIST = 64  # of the training sample
LEAST_SAMPLE, MOST_SAMPLE = 32_768, 1_048_576

BYTES_A_DIM: dict[Store, float] = {"fp32": 4, "fp16": 2, "SQ8": 1, "SQ6": 0.75, "SQ4": 0.5}

# Recall@10, mean of image and text queries, of CLIP-like vectors.
Curve = Sequence[tuple[float, float]]
CODED_RECALL: Curve = ((0.0, 0.0), (0.25, 0.45), (0.6, 0.88), (1.4, 0.945), (3.5, 0.97), (8.0, 0.99))  # bits a dim
STORED_RECALL: Curve = (
    (0.0, 0.0),
    (0.25, 0.7),
    (0.5, 0.84),
    (1.0, 0.9),
    (2.0, 0.93),
    (4.0, 0.955),
    (6.7, 0.98),
    (8.0, 0.985),
)
SCALAR_RECALL: dict[Store, float] = {"fp32": 1.0, "fp16": 0.999, "SQ8": 0.98, "SQ6": 0.93, "SQ4": 0.76}
# Share of that which is left when so many lists are looked into (as its logarithm to base 2).
LISTS_RECALL: Curve = ((0.0, 0.5), (1.0, 0.7), (2.0, 0.84), (3.0, 0.925), (4.0, 0.968), (5.0, 0.988), (6.0, 0.997))

PROGRAM_BYTES = 450e6  # the process before it has read a vector, and what it needs whatever it builds, truth as well
SAMPLE_COPIES = 1.6
PRODUCTS_A_SECOND = 50e9  # of a core, in matrix products
LOOKS_A_SECOND = 2.2e9  # of a core: codebook entries, by dimensions, that rows are compared with
BYTES_A_SECOND = 4e9  # of a core, when embeddings are read
DIMS_A_SECOND = 2e9  # of a core that does other work as well, when a query is compared with rows
CODE_MS = 0.7e-6  # to look up a code of 8 bits
SCAN_MS = 0.13e-6  # to look up one of two codes of 4 bits, of 32 rows at once, by bytes
LISTS_MS, STORE_MS, STORED_CODES_MS = 0.05, 0.1, 0.45  # to find lists; to compare the best rows with a query
LEAST_QUERY_MS = 1.0  # what is reckoned is no finer than that: the settings are tuned for shorter times, not the kind
CLUSTERED_DIMS = 96  # of the rotated rows that lists are found by: the others hardly tell them apart
CLUSTERING_STEPS = 8


def with_cost(plan: Plan, problem: Problem) -> Plan:
    """Return the plan with what it will cost."""
    recall, query_ms = expect(plan, problem)
    return replace(
        plan,
        index_bytes=index_bytes(plan, problem),
        peak_bytes=peak_bytes(plan, problem),
        seconds=count_seconds(plan, problem),
        recall=recall,
        query_ms=query_ms,
    )


def count_sample(lists: int, problem: Problem) -> int:
    """Return the rows that are trained on: enough for the lists, and within a quarter of the memory."""
    left = problem.available_bytes - PROGRAM_BYTES - beside_sample(problem.dim)
    affordable = int(min(left, problem.available_bytes / 4) / (4 * problem.dim * SAMPLE_COPIES))
    wanted = min(MOST_SAMPLE, max(LEAST_SAMPLE, ROWS_PER_LIST * lists))
    return min(problem.rows, max(min(wanted, affordable), 2 * lists))


def beside_sample(dim: int) -> int:
    """Return the memory of training besides the program and the sample."""
    return 3 * 4 * LEAST_SAMPLE * dim


def row_bytes(plan: Plan) -> int:
    """Return the bytes of a row in the store, if there is one."""
    if plan.store is None:
        return 0
    return plan.store_bytes if plan.store == "codes" else math.ceil(plan.dim * BYTES_A_DIM[plan.store])


def index_bytes(plan: Plan, problem: Problem) -> int:
    """Return the size of the index, in all its files."""
    stored = plan.rows * row_bytes(plan)
    if plan.kind == "exact":
        return problem.files * (HEADER_BYTES + 8 * plan.dim) + stored
    listed = min(plan.rows, problem.filled_rows) * (plan.code_bytes + ID_BYTES)
    if plan.bits == 4:
        listed += plan.lists * (BLOCK_OF_SCAN - 1) * plan.code_bytes
    graph = plan.lists * (2 * GRAPH_LINKS * 4 + 40) if plan.lists >= LISTS_FOR_GRAPH else 0
    centroids = plan.lists * (4 * plan.codes.width + 24) + graph
    trained = trained_bytes(plan.codes) + (trained_bytes(plan.stored_codes) if plan.store == "codes" else 0)
    return listed + stored + problem.files * (centroids + trained + HEADER_BYTES)


def held_bytes(plan: Plan, problem: Problem) -> int:
    """Return how much of the index is in memory while it is built: not its store, which goes straight into the file."""
    return index_bytes(plan, problem) - plan.rows * row_bytes(plan)


def trained_bytes(codes: Codes) -> int:
    """Return the size of a rotation and of codebooks."""
    return 4 * codes.width * ((1 << codes.bits) + codes.dim) + 8 * codes.dim


def peak_bytes(plan: Plan, problem: Problem) -> int:
    """Return the memory that building takes, all in all."""
    training = SAMPLE_COPIES * 4 * plan.sample_rows * plan.dim + beside_sample(plan.dim)
    adding = held_bytes(plan, problem)
    dims = plan.dim if plan.kind == "exact" else plan.dim + plan.codes.width
    if plan.store == "codes":
        dims += plan.stored_codes.width
    block = ROWS_AT_ONCE * 16 * dims
    part = adding * ROWS_OF_PART / plan.rows if plan.rows > ROWS_OF_PART else 0  # beside what it is merged into
    return int(PROGRAM_BYTES + max(training, 1.05 * adding + max(block, part)))


def count_seconds(plan: Plan, problem: Problem) -> float:
    """Return about how long building and measuring take."""
    speed = problem.cores * PRODUCTS_A_SECOND
    measuring = 0.5 + min(3.5, plan.rows / 30_000) + plan.rows * plan.dim * (128 / speed + 4 / BYTES_A_SECOND)
    if plan.kind == "exact":
        return measuring
    training = plan.sample_rows * plan.lists * (CLUSTERED_DIMS * CLUSTERING_STEPS + plan.dim) / speed
    listing = plan.rows * plan.codes.width * plan.lists / speed
    coding = coding_seconds(plan.codes, problem)
    if plan.store == "codes":
        coding += coding_seconds(plan.stored_codes, problem)
    return 1 + training + listing + coding + measuring


def coding_seconds(codes: Codes, problem: Problem) -> float:
    turning = codes.dim / (problem.cores * PRODUCTS_A_SECOND)
    return problem.rows * codes.width * (turning + (1 << codes.bits) / (problem.cores * LOOKS_A_SECOND))


def expect(plan: Plan, problem: Problem) -> tuple[float, float]:
    """Return recall@10 and the milliseconds of a query, of one core, with as many lists as there is time for."""
    most = ceiling(plan)
    if plan.kind == "exact":
        return most, 1000 * plan.rows * plan.dim / DIMS_A_SECOND
    fixed = LISTS_MS + (0 if plan.store is None else STORED_CODES_MS if plan.store == "codes" else STORE_MS)
    of_list = (
        min(plan.rows, problem.filled_rows) / plan.lists * plan.code_bytes * (CODE_MS if plan.bits == 8 else SCAN_MS)
    )
    probes = min(2.0 ** LISTS_RECALL[-1][0], plan.lists, max(1.0, (time_of_query(problem) - fixed) / of_list))
    return most * interpolate(LISTS_RECALL, math.log2(probes)), fixed + probes * of_list


def time_of_query(problem: Problem) -> float:
    """Return the milliseconds that a kind is chosen for."""
    return max(problem.max_query_ms, LEAST_QUERY_MS)


def ceiling(plan: Plan) -> float:
    """Return the recall of a search that looks at every row."""
    if plan.store == "codes":
        return interpolate(STORED_RECALL, 8 * plan.store_bytes / plan.dim)
    if plan.store is not None:
        return SCALAR_RECALL[plan.store]
    return interpolate(CODED_RECALL, 8 * plan.code_bytes / plan.dim)


def interpolate(curve: Curve, place: float) -> float:
    for (low, least), (high, most) in pairwise(curve):
        if place <= high:
            return least + (most - least) * (place - low) / (high - low)
    return curve[-1][1]
