"""What to build: of all kinds of index that fit the bounds, the one that finds most; and what it will cost. Pure.

Sizes are those of the files, or a little more. Memory and time are formulas whose constants were measured, and so is
the recall that a kind is expected to have (benchmarks/RESULTS.md); what it has is measured after every build.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from clip_retrieval.errors import IndexBuildError

Kind = Literal["exact", "refined", "coded", "given"]
Store = Literal["fp32", "fp16", "SQ8", "SQ6", "SQ4"]

BYTES_A_DIM: dict[Store, float] = {"fp32": 4, "fp16": 2, "SQ8": 1, "SQ6": 0.75, "SQ4": 0.5}
HEADER_BYTES = 8_192
ID_BYTES = 8
SCAN_BYTES = 32  # of 4-bit codes that only have to name what is compared finer
BLOCK_OF_SCAN = 32  # rows that a list of 4-bit codes is filled up to
LEAST_CODE_BYTES = 4
GRAPH_LINKS = 32
LISTS_FOR_GRAPH = 16_384  # from where on the nearest lists are looked up in a graph
MOST_LISTS = 32_768
LISTS_PER_ROOT = 1.2  # lists for each square root of the rows
ROWS_FOR_LISTS = 5_000  # up to which comparing with every row is as fast as anything else
ROWS_PER_LIST = 64  # of the training sample
LEAST_SAMPLE, MOST_SAMPLE = 32_768, 1_048_576
BLOCK_ROWS = 16_384  # that are transformed and added at once
ROWS_OF_PART = 1_000_000  # that a killed build may have to add again

# Recall@10, mean of image and text queries, of CLIP-like vectors at bits a dimension: benchmarks/RESULTS.md.
CODED_RECALL = ((0.0, 0.0), (0.25, 0.45), (0.6, 0.86), (1.4, 0.93), (3.5, 0.965), (8.0, 0.985))
STORE_RECALL: dict[Store, float] = {"fp32": 1.0, "fp16": 0.999, "SQ8": 0.985, "SQ6": 0.93, "SQ4": 0.76}
LISTS_RECALL = 0.998  # of a search through some of the lists, beside all of them

PROGRAM_BYTES = 450e6  # the process before it has read a vector, and what it needs whatever it builds
SAMPLE_COPIES = 1.6
PRODUCTS_A_SECOND = 50e9  # of a core, in matrix products
LOOKS_A_SECOND = 2.2e9  # of a core: codebook entries, by dimensions, that rows are compared with
BYTES_A_SECOND = 4e9  # of a core, when embeddings are read
DIMS_A_SECOND = 2e9  # of a core that does other work as well, when a query is compared with rows
CLUSTERED_DIMS = 96  # of the rotated rows that lists are found by: the others hardly tell them apart
CLUSTERING_STEPS = 8


@dataclass(frozen=True)
class Problem:
    """What is to be indexed, and within which bounds."""

    rows: int
    dim: int
    max_index_bytes: int
    available_bytes: int
    cores: int = 1
    wanted_recall: float | None = None
    max_query_ms: float = 10.0
    files: int = 1  # that the index is kept in, each with centroids and codebooks of its own


@dataclass(frozen=True)
class Plan:
    """An index, and what it will cost."""

    kind: Kind
    rows: int
    dim: int
    store: Store | None = None  # how rows are held to be compared with a query: all of them, or the best of the lists
    lists: int = 0
    code_bytes: int = 0  # of a row in its list, besides the id
    bits: int = 8  # of each code: 4, which the processor compares 32 rows at once, or 8
    sample_rows: int = 0
    index_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    recall: float = 0.0  # expected
    given_key: str = ""  # of faiss's index_factory, where somebody wants just that

    @property
    def slots(self) -> int:
        """Dimensions that share a code, at most: a power of two, for which faiss has fast code."""
        groups = 8 * self.code_bytes // self.bits
        return 1 << max(0, math.ceil(math.log2(self.dim / groups)))

    @property
    def width(self) -> int:
        """Dimensions after the transform, at most; what no code needs is padding."""
        return 8 * self.code_bytes // self.bits * self.slots

    @property
    def key(self) -> str:
        """Return what faiss's index_factory calls this shape; its rotation and codebooks are ours."""
        if self.kind == "given":
            return self.given_key
        if self.kind == "exact":
            return "Flat" if self.store == "fp32" else str(self.store).replace("fp16", "SQfp16")
        graph = f"_HNSW{GRAPH_LINKS}" if self.lists >= LISTS_FOR_GRAPH else ""
        groups = 8 * self.code_bytes // self.bits
        codes = (
            f"OPQ{groups}_{self.width},IVF{self.lists}{graph},PQ{groups}x{self.bits}{'fs' if self.bits == 4 else ''}"
        )
        return codes if self.store is None else f"{codes},Refine({str(self.store).replace('fp16', 'SQfp16')})"

    def to_json(self) -> dict[str, Any]:
        return {
            "index_key": self.key,
            "rows": self.rows,
            "dimension": self.dim,
            "index_bytes": self.index_bytes,
            "peak_bytes": self.peak_bytes,
            "seconds": round(self.seconds, 1),
            "expected_recall@10": round(self.recall, 3),
        }


def make_plan(problem: Problem) -> Plan:
    """Return the plan to follow; raises IndexBuildError that names the nearest bounds where nothing fits."""
    plans = list_plans(problem)
    fitting = [plan for plan in plans if fits(plan, problem)]
    if not fitting:
        raise IndexBuildError(explain_misfit(problem, plans))
    wanted = problem.wanted_recall
    enough = [plan for plan in fitting if wanted is not None and plan.recall >= wanted]
    if enough:
        return min(enough, key=lambda plan: (is_slow(plan, problem), plan.index_bytes))
    quick = [plan for plan in fitting if not is_slow(plan, problem)]
    return max(quick or fitting, key=lambda plan: (plan.recall, -plan.index_bytes))


def given_plan(problem: Problem, key: str) -> Plan:
    """Return the plan of a key that somebody wants; what it costs is not known before it is built."""
    return Plan(
        "given", problem.rows, problem.dim, given_key=key, sample_rows=count_sample(count_lists(problem.rows), problem)
    )


def fits(plan: Plan, problem: Problem) -> bool:
    return plan.index_bytes <= problem.max_index_bytes and plan.peak_bytes <= problem.available_bytes


def is_slow(plan: Plan, problem: Problem) -> bool:
    """Say whether comparing with every row takes longer than a query may."""
    if plan.kind != "exact" or plan.rows <= ROWS_FOR_LISTS:
        return False
    return 1000 * plan.rows * plan.dim / DIMS_A_SECOND > problem.max_query_ms


def list_plans(problem: Problem) -> list[Plan]:
    """Return what could be built, with its cost, within the bounds or not; the best of each kind."""
    return [with_cost(plan, problem) for plan in shapes(problem)]


def shapes(problem: Problem) -> Iterator[Plan]:
    rows, dim = problem.rows, problem.dim
    for store in BYTES_A_DIM:
        yield Plan("exact", rows, dim, store, sample_rows=0 if store == "fp32" else min(rows, LEAST_SAMPLE))
    if rows <= ROWS_FOR_LISTS:
        return
    lists = count_lists(rows)
    refined = Plan(
        "refined", rows, dim, None, lists, min(SCAN_BYTES, max(2, dim // 8)), 4, count_sample(lists, problem)
    )
    yield replace(refined, store="fp16")
    yield replace(refined, store="SQ8")
    coded = fill_with_codes(Plan("coded", rows, dim, None, lists, dim, 8, refined.sample_rows), problem)
    yield coded
    if problem.wanted_recall is not None:
        yield cut_codes(coded, problem, problem.wanted_recall)


def fill_with_codes(plan: Plan, problem: Problem) -> Plan:
    """Return the plan with the longest codes that fit into the bounds; the shortest where none does."""
    least = min(LEAST_CODE_BYTES, plan.dim)
    lengths = (replace(plan, code_bytes=count) for count in range(plan.dim, least, -1))
    fitting = (longer for longer in lengths if fits(with_cost(longer, problem), problem))
    return next(fitting, replace(plan, code_bytes=least))


def cut_codes(plan: Plan, problem: Problem, wanted_recall: float) -> Plan:
    """Return the smallest plan with codes of this length or less that is expected to find enough; or this one."""
    lengths = range(min(LEAST_CODE_BYTES, plan.dim), plan.code_bytes)
    shorter = (replace(plan, code_bytes=count) for count in lengths)
    enough = (cut for cut in shorter if expect_recall(cut) >= wanted_recall)
    return min(enough, key=lambda cut: index_bytes(cut, problem), default=plan)


def count_lists(rows: int) -> int:
    return min(MOST_LISTS, max(16, 1 << round(math.log2(LISTS_PER_ROOT * math.sqrt(rows)))))


def count_sample(lists: int, problem: Problem) -> int:
    """Return the rows that are trained on: enough for the lists, and within a quarter of the memory."""
    left = problem.available_bytes - PROGRAM_BYTES - beside_sample(problem.dim)
    affordable = int(min(left, problem.available_bytes / 4) / (4 * problem.dim * SAMPLE_COPIES))
    wanted = min(MOST_SAMPLE, max(LEAST_SAMPLE, ROWS_PER_LIST * lists))
    return min(problem.rows, max(min(wanted, affordable), 2 * lists))


def beside_sample(dim: int) -> int:
    """Return the memory of training besides the program and the sample."""
    return 3 * 4 * LEAST_SAMPLE * dim


def with_cost(plan: Plan, problem: Problem) -> Plan:
    return replace(
        plan,
        index_bytes=index_bytes(plan, problem),
        peak_bytes=peak_bytes(plan, problem),
        seconds=count_seconds(plan, problem),
        recall=expect_recall(plan),
    )


def index_bytes(plan: Plan, problem: Problem) -> int:
    """Return the size of the index, in all its files."""
    stored = plan.rows * math.ceil(plan.dim * BYTES_A_DIM[plan.store]) if plan.store else 0
    if plan.kind == "exact":
        return problem.files * (HEADER_BYTES + 8 * plan.dim) + stored
    listed = plan.rows * (plan.code_bytes + ID_BYTES)
    if plan.bits == 4:
        listed += plan.lists * (BLOCK_OF_SCAN - 1) * plan.code_bytes
    graph = plan.lists * (2 * GRAPH_LINKS * 4 + 40) if plan.lists >= LISTS_FOR_GRAPH else 0
    centroids = plan.lists * (4 * plan.width + 24) + graph
    trained = 4 * plan.width * ((1 << plan.bits) + plan.dim) + 8 * plan.dim
    return listed + stored + problem.files * (centroids + trained + HEADER_BYTES)


def peak_bytes(plan: Plan, problem: Problem) -> int:
    """Return the memory that building takes, all in all."""
    training = SAMPLE_COPIES * 4 * plan.sample_rows * plan.dim + beside_sample(plan.dim)
    adding = plan.index_bytes or index_bytes(plan, problem)
    block = BLOCK_ROWS * (8 * plan.dim + 8 * plan.width if plan.kind != "exact" else 8 * plan.dim)
    part = adding * ROWS_OF_PART / plan.rows if plan.rows > ROWS_OF_PART else 0  # beside what it is merged into
    return int(PROGRAM_BYTES + max(training, 1.05 * adding + max(block, part)))


def count_seconds(plan: Plan, problem: Problem) -> float:
    """Return about how long building and measuring take."""
    speed = problem.cores * PRODUCTS_A_SECOND
    measuring = 0.5 + min(3.5, plan.rows / 30_000) + plan.rows * plan.dim * (128 / speed + 4 / BYTES_A_SECOND)
    if plan.kind == "exact":
        return measuring
    training = plan.sample_rows * plan.lists * (CLUSTERED_DIMS * CLUSTERING_STEPS + plan.dim) / speed
    adding = plan.rows * plan.width * (plan.dim + plan.lists) / speed
    coding = plan.rows * plan.width * (1 << plan.bits) / (problem.cores * LOOKS_A_SECOND)
    return 1 + training + adding + coding + measuring


def expect_recall(plan: Plan) -> float:
    if plan.store is not None:
        return STORE_RECALL[plan.store] * (LISTS_RECALL if plan.kind == "refined" else 1)
    bits = 8 * plan.code_bytes / plan.dim
    for (low, least), (high, most) in pairwise(CODED_RECALL):
        if bits <= high:
            return least + (most - least) * (bits - low) / (high - low)
    return CODED_RECALL[-1][1]


def explain_misfit(problem: Problem, plans: list[Plan]) -> str:
    """Say what the least demanding index would take."""
    small = min(plans, key=lambda plan: max(plan.index_bytes / max(1, problem.max_index_bytes),
                                            plan.peak_bytes / max(1, problem.available_bytes)))  # fmt: skip
    least, memory = megabytes(small.index_bytes), megabytes(small.peak_bytes)
    return (
        f"no index of {problem.rows:,} x {problem.dim} vectors fits into max_index_memory_usage "
        f"{problem.max_index_bytes / 1e6:,.0f} MB and current_memory_available "
        f"{problem.available_bytes / 1e6:,.0f} MB; the nearest that can be built is {small.key}, with "
        f"--max_index_memory_usage {least}MB --current_memory_available {memory}MB"
    )


def megabytes(count: float) -> int:
    return math.ceil(count / 1e6)
