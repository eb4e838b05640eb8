"""What building an index costs, before there is one: its size, memory and time. Pure.

Sizes are those of the files, or a little more. Memory and time are formulas whose constants were measured.
"""

from __future__ import annotations

import math
from dataclasses import replace

from clip_retrieval.index.planning.expected import GRAPH_ROWS, expect
from clip_retrieval.index.planning.shapes import GRAPH_LINKS, LISTS_FOR_GRAPH, Codes, Plan, Problem, Store

HEADER_BYTES = 8_192
ID_BYTES = 8
BLOCK_OF_SCAN = 32  # rows; lists of 4-bit codes are padded to multiples of it
ROWS_TO_ADD = 8_192  # rows added at a time; the C library uses memory of that size again
# Bytes of a graph's row: its links, those of upper levels (one row in GRAPH_LINKS is there, or a few more by chance),
# its level, and the offset of its links.
LINK_BYTES = 4 * GRAPH_LINKS * (2 + 1.05 / (GRAPH_LINKS - 1)) + 12
ROWS_OF_PART = 1_000_000  # rows that a killed build may have to add again
ROWS_PER_LIST = 64  # training rows for each list
LEAST_SAMPLE, MOST_SAMPLE = 32_768, 1_048_576

BYTES_A_DIM: dict[Store, float] = {"fp32": 4, "fp16": 2, "SQ8": 1, "SQ6": 0.75, "SQ4": 0.5}

PROGRAM_BYTES = 200e6  # the process before it has read a vector, libraries among it
TRUTH_BLOCK_BYTES = 1 << 24  # bytes of fp32 rows that a thread compares at a time; the C library uses that size again
MOST_TRUTH_THREADS = 8
SAMPLE_COPIES = 1.6
PRODUCTS_A_SECOND = 70e9  # multiplications of one core, in matrix products
LOOKS_A_SECOND = 6e9  # comparisons of one core with codebook entries, times dimensions
BYTES_A_SECOND = 4e9  # bytes of embeddings that one core reads
LINKING_SECONDS = 0.51e-6  # seconds of one core for each row and dimension of a graph of GRAPH_ROWS rows
LINKING_POWER = 0.32  # linking a row takes longer with this power of the number of rows
HALF_SLOWNESS = 1.35  # factor of time for half precision, which is widened at every comparison
CLUSTERED_DIMS = 96  # rotated dimensions that k-means uses; the others hardly tell lists apart
CLUSTERING_STEPS = 5


def with_cost(plan: Plan, problem: Problem) -> Plan:
    """Return the plan with its costs filled in."""
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
    left = problem.bounds.available_bytes - program_bytes(problem) - beside_sample(LEAST_SAMPLE, problem.dim)
    affordable = int(min(left, problem.bounds.available_bytes / 4) / (4 * problem.dim * SAMPLE_COPIES))
    return min(problem.rows, max(min(wanted_sample(lists), affordable), 2 * lists))


def wanted_sample(lists: int) -> int:
    return min(MOST_SAMPLE, max(LEAST_SAMPLE, ROWS_PER_LIST * lists))


def program_bytes(problem: Problem) -> float:
    """Return the memory that every kind of index needs to build."""
    return PROGRAM_BYTES + 2 * TRUTH_BLOCK_BYTES * (1 + min(problem.cores, MOST_TRUTH_THREADS))


def beside_sample(sample_rows: int, dim: int) -> int:
    """Return the memory of training besides the program and the sample."""
    return 3 * 4 * min(sample_rows, LEAST_SAMPLE) * dim


def row_bytes(plan: Plan) -> int:
    """Return the bytes of a row in the store, if there is one."""
    if plan.store is None:
        return 0
    return plan.store_bytes if plan.store in ("codes", "PCA") else math.ceil(plan.dim * BYTES_A_DIM[plan.store])


def index_bytes(plan: Plan, problem: Problem) -> int:
    """Return the size of the index, in all its files."""
    return bytes_of_rows(plan, problem, plan.rows)


def bytes_of_rows(plan: Plan, problem: Problem, rows: int) -> int:
    """Return the size of the index, in all its files, with `rows` of its rows."""
    stored = rows * row_bytes(plan)
    if plan.kind == "exact":
        return problem.files * (HEADER_BYTES + 8 * plan.dim) + stored
    if plan.kind == "graph":
        return HEADER_BYTES + 8 * plan.dim + stored + math.ceil(rows * LINK_BYTES)
    filled = min(rows, problem.filled_rows)
    if plan.kind == "listed":
        return filled * (row_bytes(plan) + ID_BYTES) + problem.files * (HEADER_BYTES + centroid_bytes(plan))
    listed = filled * (plan.code_bytes + ID_BYTES)
    if plan.bits == 4:
        listed += plan.lists * (BLOCK_OF_SCAN - 1) * plan.code_bytes
    trained = trained_bytes(plan.codes) + (trained_bytes(plan.stored_codes) if plan.store == "codes" else 0)
    if plan.store == "PCA":
        trained += 4 * plan.store_bytes * (plan.dim + 2)  # the rotation, and the range of each direction
    return listed + stored + problem.files * (centroid_bytes(plan) + trained + HEADER_BYTES)


def centroid_bytes(plan: Plan) -> int:
    """Return the size of the lists' centroids, and of the graph over them if there are very many."""
    links = 2 * GRAPH_LINKS * 4 + 40 if plan.lists >= LISTS_FOR_GRAPH else 0
    return plan.lists * (4 * plan.width + 24 + links)


def held_bytes(plan: Plan, problem: Problem) -> int:
    """Return the most of the index that is in memory during a build.

    Its store is streamed into the file, and lists without one are merged from file to file.
    """
    rows = min(plan.rows, ROWS_OF_PART) if plan.kind in ("listed", "coded") else plan.rows
    in_file = rows * row_bytes(plan) if plan.kind in ("exact", "refined") else 0
    return bytes_of_rows(plan, problem, rows) - in_file


def trained_bytes(codes: Codes) -> int:
    """Return the size of a rotation and of codebooks."""
    return 4 * codes.width * ((1 << codes.bits) + codes.dim) + 8 * codes.dim


def peak_bytes(plan: Plan, problem: Problem) -> int:
    """Return the peak memory of building."""
    training = SAMPLE_COPIES * 4 * plan.sample_rows * plan.dim + beside_sample(plan.sample_rows, plan.dim)
    adding = held_bytes(plan, problem)
    dims = plan.dim + (plan.width if plan.code_bytes else 0)
    if plan.store == "codes":
        dims += plan.stored_codes.width
    elif plan.store == "PCA":
        dims += plan.store_bytes
    block = ROWS_TO_ADD * 16 * dims
    is_merged_here = plan.kind == "refined" and plan.rows > ROWS_OF_PART
    part = adding * ROWS_OF_PART / plan.rows if is_merged_here else 0  # besides the file that it is merged into
    return int(program_bytes(problem) + max(training, 1.05 * adding + max(block, part)))


def count_seconds(plan: Plan, problem: Problem) -> float:
    """Return about how long building and measuring take."""
    speed, measuring = problem.cores * PRODUCTS_A_SECOND, measuring_seconds(plan, problem)
    if plan.kind == "exact":
        return measuring
    if plan.kind == "graph":
        return measuring + linking_seconds(plan, problem)
    sample = min(plan.rows, wanted_sample(plan.lists))  # at most: more memory must never be worth less
    training = sample * plan.lists * (CLUSTERED_DIMS * CLUSTERING_STEPS + plan.dim) / speed
    listing = plan.rows * plan.width * plan.lists / speed
    if plan.kind == "listed":
        return 1 + training + listing + measuring
    coding = coding_seconds(plan.codes, problem)
    if plan.store == "codes":
        coding += coding_seconds(plan.stored_codes, problem)
    return 1 + training + listing + coding + measuring


def measuring_seconds(plan: Plan, problem: Problem) -> float:
    """Return the time to find the truth of some queries, and to tune the settings by it."""
    reading = plan.rows * plan.dim * (128 / (problem.cores * PRODUCTS_A_SECOND) + 4 / BYTES_A_SECOND)
    return 0.5 + min(3.5, plan.rows / 30_000) + reading


def linking_seconds(plan: Plan, problem: Problem) -> float:
    """Return the time to find the neighbors of every row in the graph as far as it is built."""
    slowness: float = (plan.rows / GRAPH_ROWS) ** LINKING_POWER * (HALF_SLOWNESS if plan.store == "fp16" else 1)
    return plan.rows * plan.dim * slowness * LINKING_SECONDS / problem.cores


def coding_seconds(codes: Codes, problem: Problem) -> float:
    turning = codes.dim / (problem.cores * PRODUCTS_A_SECOND)
    return problem.rows * codes.width * (turning + (1 << codes.bits) / (problem.cores * LOOKS_A_SECOND))
