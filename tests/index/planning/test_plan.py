"""Plans: within the bounds, the best there is for them, refusals that can be followed, and sizes that come true."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building import training
from clip_retrieval.index.building.parts import add_rows
from clip_retrieval.index.building.training import train_index
from clip_retrieval.index.planning import plan as planning
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.costs import held_bytes, row_bytes, with_cost
from clip_retrieval.index.planning.expected import to_expect
from clip_retrieval.index.planning.plan import ROWS_FOR_LISTS, SMALLEST, is_slow, lengths, list_plans, make_plan, worth
from clip_retrieval.index.planning.shapes import LISTS_FOR_GRAPH, Plan, Problem
from clip_retrieval.options import parse_bytes

Rows = NDArray[np.float32]
AMPLE = 10**14  # bytes
NAMED_BOUNDS = re.compile(r"with --max_index_memory_usage (\S+) --current_memory_available (\S+)$")


def powers(low: float, high: float) -> st.SearchStrategy[int]:
    """Integers, as many small ones as large ones."""
    return st.floats(low, high).map(lambda power: int(10**power))


def problem_of(rows: int, dim: int, index_bytes: int, memory: int, **options: Any) -> Problem:
    """Return a problem, with the fields of its bounds among the options."""
    of_bounds = {name: options.pop(name) for name in [*options] if name in ("cores", "wanted_recall", "max_query_ms")}
    bounds = Bounds(max_index_bytes=index_bytes, available_bytes=memory, **{"cores": 1, **of_bounds})
    return Problem(rows=rows, dim=dim, bounds=bounds, **options)


dims = st.one_of(st.integers(1, 2048), st.sampled_from([1, 2, 3, 33, 512, 513, 768, 2048]))
row_counts = st.one_of(powers(0, 9.69), st.sampled_from([0, 1, ROWS_FOR_LISTS, ROWS_FOR_LISTS + 1, 5 * 10**9]))
problems = st.builds(
    problem_of,
    rows=row_counts,
    dim=dims,
    index_bytes=powers(3, 13.5),
    memory=powers(8.5, 13.5),
    cores=st.integers(1, 128),
    wanted_recall=st.one_of(st.none(), st.floats(0.1, 1)),
    files=st.sampled_from([1, 1, 2, 40]),
    empty_rows=st.sampled_from([0, 0, 3, 10_000]),
)


@contextmanager
def few_lengths() -> Iterator[None]:
    """Try an eighth of the code lengths: plans of rows of many dimensions take an eighth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MOST_LENGTHS", 64)
        yield


def plan_if_any(problem: Problem) -> Plan | None:
    try:
        return make_plan(problem)
    except IndexBuildError:
        return None


@settings(max_examples=100, deadline=None)
@given(problem=problems)
@few_lengths()
def test_a_plan_is_within_its_bounds_or_refused_with_bounds_that_do(problem: Problem) -> None:
    try:
        plan = make_plan(problem)
    except IndexBuildError as error:
        named = NAMED_BOUNDS.search(str(error))
        assert named is not None
        index, available = parse_bytes(named[1]), parse_bytes(named[2])
        assert index > problem.bounds.max_index_bytes or available > problem.bounds.available_bytes
        problem = problem.within(max_index_bytes=index, available_bytes=available)
        plan = make_plan(problem)

    assert plan.index_bytes <= problem.bounds.max_index_bytes
    assert plan.peak_bytes <= problem.bounds.available_bytes
    assert plan.index_bytes > 0
    assert plan.peak_bytes > held_bytes(plan, problem)
    assert plan.seconds > 0
    assert 0 < plan.recall <= 1
    assert plan.sample_rows <= plan.rows == problem.rows
    assert (plan.lists == 0) == (plan.kind in ("exact", "graph"))
    assert plan.sample_rows >= 2 * plan.lists or plan.sample_rows == plan.rows


@settings(max_examples=100, deadline=None)
@given(problem=problems, more=powers(3, 13.5), more_memory=powers(3, 13.5))
@few_lengths()
def test_more_memory_is_never_worth_less(problem: Problem, more: int, more_memory: int) -> None:
    problem = problem.within(wanted_recall=None)
    less = plan_if_any(problem)
    assume(less is not None)
    assert less is not None
    larger = problem.within(
        max_index_bytes=problem.bounds.max_index_bytes + more,
        available_bytes=problem.bounds.available_bytes + more_memory,
    )

    plan = make_plan(larger)

    became_quick = is_slow(less, problem) and not is_slow(plan, larger)
    assert worth(plan) >= worth(less) or became_quick


@settings(max_examples=100, deadline=None)
@given(problem=problems, wanted=st.floats(0.3, 0.99))
@few_lengths()
def test_a_wanted_recall_takes_the_smallest_that_has_it(problem: Problem, wanted: float) -> None:
    best = plan_if_any(problem.within(wanted_recall=None))
    assume(best is not None)
    assert best is not None
    wanting = problem.within(wanted_recall=wanted)
    plan = make_plan(wanting)

    wanted = to_expect(wanted)
    if best.recall < wanted:
        assert plan == best or plan.recall >= wanted
        assert is_slow(best, wanting) or not is_slow(plan, wanting)
        return
    assert plan.recall >= wanted
    for other in [*list_plans(wanting), *shorter_codes(plan, wanting)]:
        fits = (
            other.index_bytes <= problem.bounds.max_index_bytes and other.peak_bytes <= problem.bounds.available_bytes
        )
        if fits and other.recall >= wanted and not is_slow(other, wanting):
            assert plan.index_bytes <= SMALLEST * other.index_bytes


def shorter_codes(plan: Plan, problem: Problem) -> list[Plan]:
    if plan.kind == "coded":
        return [with_cost(replace(plan, code_bytes=n), problem) for n in lengths(plan.dim) if n < plan.code_bytes]
    return [with_cost(replace(plan, store_bytes=n), problem) for n in lengths(plan.dim - 1) if n < plan.store_bytes]


@pytest.mark.parametrize(
    ("rows", "wanted", "limit"), [(10**6, 0.99, 0.3), (10**8, 0.99, 1), (200_000, 0.99, 10), (50_000, None, 0.06)]
)
def test_no_wish_is_worth_comparing_with_every_row_for_seconds(rows: int, wanted: float | None, limit: float) -> None:
    problem = problem_of(rows, 512, AMPLE, AMPLE, wanted_recall=wanted, max_query_ms=limit)
    plan = make_plan(problem)
    assert (plan.kind, plan.store) == ("refined", "fp16")


ROOMY = problem_of(200_000, 512, 2 * 10**9, AMPLE)
IN_A_HURRY = replace(ROOMY.within(max_query_ms=0.2), asks_across=False)


def test_a_graph_is_for_queries_like_the_rows_that_have_little_time() -> None:
    assert make_plan(IN_A_HURRY).key == "HNSW32,Flat"


@pytest.mark.parametrize(
    "problem",
    [
        ROOMY,
        replace(ROOMY, asks_across=False),
        replace(IN_A_HURRY, asks_across=True),
        IN_A_HURRY.within(max_query_ms=0.08),
        IN_A_HURRY.within(max_index_bytes=250_000_000),
        replace(IN_A_HURRY.within(max_index_bytes=AMPLE), rows=10**8),
        IN_A_HURRY.within(is_in_parts=True),
        replace(IN_A_HURRY, files=2),
        replace(IN_A_HURRY, empty_rows=20_000),
    ],
    ids=[
        "default",
        "enough time",
        "captions",
        "no time",
        "no room",
        "too many rows",
        "made in parts",
        "several files",
        "zeros",
    ],
)
def test_else_lists_are_refined(problem: Problem) -> None:
    assert (make_plan(problem).kind, make_plan(problem).store) == ("refined", "fp16")


def test_whole_rows_are_in_lists_where_codes_beside_them_have_no_room() -> None:
    kinds = {limit: make_plan(ROOMY.within(max_index_bytes=limit * 10**6)) for limit in (200, 206, 210, 220)}

    assert {limit: (plan.kind, plan.store) for limit, plan in kinds.items()} == {
        200: ("refined", "codes"),
        206: ("refined", "codes"),
        210: ("listed", "fp16"),
        220: ("refined", "fp16"),
    }


def test_lists_of_exact_rows_are_for_who_wants_nearly_all() -> None:
    assert make_plan(ROOMY.within(wanted_recall=0.999)).key == "IVF512,Flat"


@pytest.mark.parametrize(("limit", "kind"), [(0.2, "refined"), (0.3, "refined"), (0.6, "refined"), (3, "coded")])
def test_codes_of_lists_take_more_time_than_refined_ones(limit: float, kind: str) -> None:
    plan = make_plan(problem_of(200_000, 512, 50_000_000, AMPLE, max_query_ms=limit))

    assert plan.kind == kind
    assert plan.recall > 0.88


def test_rows_are_refined_by_a_byte_a_direction_where_a_table_of_codes_takes_too_long() -> None:
    plan = make_plan(problem_of(200_000, 512, 50_000_000, AMPLE, max_query_ms=0.25))

    assert (plan.kind, plan.store) == ("refined", "PCA")
    assert plan.key == f"OPQ64_512,IVF512,PQ64x4fs,Refine(PCA{plan.store_bytes},SQ8)"
    assert plan.index_bytes < 50_000_000


def test_long_codes_are_in_more_lists_than_short_ones() -> None:
    long, short = (make_plan(problem_of(200_000, 512, limit, AMPLE)) for limit in (50_000_000, 15_000_000))

    assert (long.kind, short.kind) == ("coded", "coded")
    assert (long.lists, short.lists) == (1024, 512)


@settings(max_examples=50, deadline=None)
@given(rows=powers(4, 9.69), limit=st.floats(0.1, 20), more=st.floats(0, 10))
@example(rows=4_200_000_000, limit=7.0, more=2.0)
def test_more_time_is_never_worth_less(rows: int, limit: float, more: float) -> None:
    short = problem_of(rows, 64, AMPLE, AMPLE, max_query_ms=limit)
    less, plan = make_plan(short), make_plan(short.within(max_query_ms=limit + more))

    assert is_slow(less, short) or worth(plan) >= worth(less) - 1e-9  # rounding


def test_lists_are_for_rows_that_are_filled() -> None:
    assert make_plan(problem_of(100_000, 512, AMPLE, AMPLE, empty_rows=99_990)).lists == 1
    assert make_plan(problem_of(100_000, 512, AMPLE, AMPLE, empty_rows=90_000)).lists == 128


@given(rows=st.integers(0, ROWS_FOR_LISTS), dim=dims)
def test_few_rows_are_all_compared(rows: int, dim: int) -> None:
    plan = make_plan(problem_of(rows, dim, AMPLE, AMPLE))

    assert (plan.kind, plan.key, plan.recall) == ("exact", "Flat", 1)


def test_rows_are_coded_where_nothing_else_fits() -> None:
    plan = make_plan(problem_of(20_000, 64, 500_000, AMPLE))

    assert plan.kind == "coded"
    assert 450_000 < plan.index_bytes <= 500_000


def test_lists_are_merged_from_file_to_file_so_long_codes_need_the_memory_of_a_part() -> None:
    problem = problem_of(100_000_000, 512, 60 * 10**9, 4 * 10**9)
    [coded] = [plan for plan in list_plans(problem) if plan.kind == "coded"]

    assert coded.code_bytes > 200
    assert held_bytes(coded, problem) < coded.peak_bytes < 2 * 10**9 < 20 * 10**9 < coded.index_bytes


def test_rows_held_by_place_take_no_memory_to_build() -> None:
    plan = make_plan(problem_of(100_000_000, 512, 110 * 10**9, 8 * 10**9))

    assert (plan.kind, plan.store) == ("refined", "fp16")
    assert plan.peak_bytes < 8 * 10**9 < 100 * 10**9 < plan.index_bytes


def test_without_any_memory_it_is_refused_too() -> None:
    with pytest.raises(IndexBuildError, match=r"into max_index_memory_usage 0 bytes and current_memory_available 0 "):
        make_plan(problem_of(10_000, 64, 0, 0))


@pytest.mark.parametrize("dim", [16, 32, 512])
@pytest.mark.parametrize("rows", [30, 300, 5000, 5001, 20_000, 300_000, 2_000_000, 60_000_000])
def test_the_bounds_of_a_refusal_give_just_the_kind_it_names(rows: int, dim: int) -> None:
    problem = problem_of(rows, dim, 100, AMPLE)
    with pytest.raises(IndexBuildError) as refused:
        make_plan(problem)
    named = re.search(r"built is (\S+), with", str(refused.value))
    bounds = NAMED_BOUNDS.search(str(refused.value))
    assert named
    assert bounds
    index, available = parse_bytes(bounds[1]), parse_bytes(bounds[2])
    plan = make_plan(problem.within(max_index_bytes=index, available_bytes=available))
    assert plan.key == named[1]
    assert plan.index_bytes > index / 1.1


@pytest.mark.parametrize("dim", [2, 3, 7, 33, 64, 100, 512])
def test_keys_are_shapes_that_faiss_can_read(dim: int) -> None:
    for limit in (1, 20_000 * (8 + dim // 3), AMPLE):
        for plan in list_plans(problem_of(20_000, dim, limit, AMPLE)):
            index = faiss.index_factory(dim, plan.key, faiss.METRIC_INNER_PRODUCT)
            assert index.d == dim
            if plan.lists:
                lists = faiss.extract_index_ivf(index)
                size = plan.code_bytes or row_bytes(plan)
                assert (lists.nlist, lists.code_size, lists.d) == (plan.lists, size, plan.width)


pytestmark = pytest.mark.usefixtures("one_thread")


def make_rows(count: int, dim: int, shape: str = "full") -> Rows:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((count, dim)) * np.arange(1, dim + 1) ** -0.5
    if shape == "alike":
        rows[:] = np.eye(dim)[0]
    elif shape == "nearly alike":
        rows[:] = rows[0]
    elif shape == "rank 1":
        rows = rows[:, :1] * rows[0]
    elif shape == "constant":
        rows[:, dim // 2 :] = 0.3
    elif shape == "zeros":
        rows[::3] = 0
    elif shape == "all zero":
        rows[:] = 0
    return rows.astype(np.float32)


def build(plan: Plan, rows: Rows) -> faiss.Index:
    sample = rows[: max(1, plan.sample_rows)].copy()
    index = train_index(plan, sample, rows[:500] if plan.kind == "coded" else rows[:500] + np.float32(0.01))
    add_rows(index, rows, 0, np.flatnonzero(rows.any(axis=1)))
    return index


def file_bytes(index: faiss.Index) -> int:
    return len(faiss.serialize_index(index))


def make_quick_graph(plan: Plan, make: Callable[[Plan], Any] = training.make_graph) -> Any:
    """Return a graph that looks at few rows before it links one: which ones it links changes no size."""
    graph = make(plan)
    graph.hnsw.efConstruction = 4
    return graph


@pytest.mark.parametrize(
    ("count", "dim", "code_bytes"), [(6_000, 48, (8, 16, 21, 48)), (20_000, 16, (4, 9, 16)), (9_000, 33, (8, 33))]
)
def test_files_are_as_large_as_planned_or_a_little_smaller(
    count: int, dim: int, code_bytes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "make_graph", make_quick_graph)
    problem, rows = problem_of(count, dim, AMPLE, AMPLE), make_rows(count, dim)
    plans = list_plans(problem)
    recoded, coded = plans[-2:]
    shorter = [replace(coded, code_bytes=length) for length in code_bytes]
    shorter += [replace(recoded, store_bytes=length) for length in code_bytes if length < dim]

    for plan in [*plans[:-2], *(with_cost(shape, problem) for shape in shorter)]:
        if plan.kind == "graph" and count > 6_000:  # takes long
            continue
        real = file_bytes(build(plan, rows))
        assert real <= plan.index_bytes <= max(1.15 * real, real + 65_536), plan.key


def test_files_with_a_graph_of_lists_are_as_large_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CLUSTERING_STEPS", 1)  # where the centroids lie changes no size
    monkeypatch.setattr(training, "GRAPH_BUILD_DEPTH", 4)  # nor does how well they are linked
    count = LISTS_FOR_GRAPH + 1
    problem, rows = problem_of(count, 8, AMPLE, AMPLE), make_rows(count, 8)
    shape = Plan("coded", count, 8, None, LISTS_FOR_GRAPH, 8, 8, sample_rows=count)
    plan = with_cost(shape, problem)

    index = build(plan, rows)

    assert isinstance(faiss.downcast_index(faiss.extract_index_ivf(index).quantizer), faiss.IndexHNSWFlat)
    assert file_bytes(index) <= plan.index_bytes <= 1.15 * file_bytes(index)


SHAPES = ["alike", "nearly alike", "rank 1", "constant", "zeros", "all zero"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [1, 2, 3, 32, 33])
def test_rows_of_any_shape_give_an_index_within_its_bytes(shape: str, dim: int) -> None:
    count = ROWS_FOR_LISTS + 1
    rows = make_rows(count, dim, shape)
    for limit in (1, AMPLE):
        for plan in list_plans(problem_of(count, dim, limit, AMPLE)):
            if plan.kind in ("exact", "graph") or plan.store == "SQ8" or (plan.store == "fp16" and limit != AMPLE):
                continue
            index = build(plan, rows)
            assert file_bytes(index) <= plan.index_bytes, plan.key
            scores, ids = index.search(rows[:4], 3)
            assert np.isfinite(scores[ids >= 0]).all()
            assert faiss.extract_index_ivf(index).ntotal == np.count_nonzero(rows.any(axis=1))


@pytest.mark.parametrize(
    ("rows", "dim", "limit", "held"),
    [
        (1_000, 512, AMPLE, 59),
        (20_000, 512, AMPLE, 197),
        (20_000, 512, 6_000_000, 241),
        (100_000, 1024, 60_000_000, 504),
        (200_000, 512, 215_600_000, 286),
        (200_000, 512, 20_000_000, 316),
        (1_000_000, 512, 1_100_000_000, 348),
        (10_000_000, 512, 500_000_000, 859),
    ],
)
def test_memory_to_build_is_more_than_was_measured_but_not_by_much(rows: int, dim: int, limit: int, held: int) -> None:
    """`held`: MB of anonymous memory on two cores, beside some 60 to 180 MB of mapped libraries."""
    peak = make_plan(problem_of(rows, dim, limit, AMPLE, cores=2)).peak_bytes / 1e6

    assert held + 100 < peak < 2 * (held + 180)
