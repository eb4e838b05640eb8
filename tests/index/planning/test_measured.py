"""Plans by measured recall: the usual one where it keeps its promise, else what finds most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.measured import (
    LIST_EFFORTS,
    SHARE_EFFORTS,
    Effort,
    choose_measured,
    extrapolate,
    is_candidate,
    list_efforts_of,
    scale_depth,
    with_measured,
)
from clip_retrieval.index.planning.plan import list_plans, make_plan
from clip_retrieval.index.planning.shapes import Plan, Problem


def problem_of(megabytes: float = 12.5, **bounds: float) -> Problem:
    options = {"max_index_bytes": int(megabytes * 1e6), "available_bytes": 10**10, "cores": 2, **bounds}
    return Problem(rows=400_000, dim=64, bounds=Bounds(**options))  # type: ignore[arg-type]


def finding(found: Mapping[str, float], tried: list[str]) -> object:
    """Return a measurement by the kind of a plan; it notes what was tried."""

    def measure(plan: Plan) -> Plan:
        tried.append(plan.kind)
        return replace(plan, promised=plan.recall, recall=found[plan.kind])

    return measure


@pytest.mark.parametrize(("few", "many"), [(0.9, 0.8), (0.15, 0.09), (0.998, 0.99), (0.6, 0.599)])
def test_recall_falls_further_with_every_doubling_and_never_below_zero(few: float, many: float) -> None:
    continued = [extrapolate(few, many, doublings) for doublings in (0, 1, 2, 5, 20)]
    assert continued[0] == many
    assert continued == sorted(continued, reverse=True)
    assert continued[-1] > 0


def test_recall_that_rose_is_taken_to_stay() -> None:
    assert extrapolate(0.8, 0.9, 5) == 0.9


def test_the_odds_change_by_the_same_factor_each_time() -> None:
    """From a fifth to a ninth of the odds: 1:4 to 1:8 in two doublings is 1:16 after two more."""
    assert extrapolate(1 / 5, 1 / 9, 2) == pytest.approx(1 / 17)


def test_a_graph_of_few_rows_is_searched_as_much_less_deep_as_it_is_smaller() -> None:
    problem = problem_of()  # of 400,000 rows
    depths = [scale_depth(256, rows, problem) for rows in (2_048, 8_192, 400_000, 500_000)]
    assert depths == [14, 30, 256, 256]


def test_all_that_can_be_found_is_no_promise_of_all() -> None:
    assert extrapolate(1.0, 0.97, 4) < 0.9


def test_a_plan_that_keeps_its_promise_is_followed_and_nothing_else_is_tried() -> None:
    problem, tried = problem_of(), list[str]()
    usual = make_plan(problem)
    chosen = choose_measured(problem, finding({usual.kind: usual.recall - 0.04}, tried))  # type: ignore[arg-type]
    assert (chosen.key, tried) == (usual.key, [usual.kind])
    assert (chosen.promised, chosen.recall) == (usual.recall, usual.recall - 0.04)


def test_where_the_usual_plan_finds_less_the_best_of_all_is_taken() -> None:
    problem, tried = problem_of(), list[str]()
    usual = make_plan(problem)
    kinds = {plan.kind for plan in list_plans(problem) if is_candidate(plan, problem)}
    assert kinds == {"refined", "coded"}
    [other] = kinds - {usual.kind}
    chosen = choose_measured(problem, finding({usual.kind: 0.3, other: 0.5}, tried))  # type: ignore[arg-type]
    assert chosen.kind == other
    assert set(tried) == kinds
    worse = choose_measured(problem, finding({usual.kind: 0.3, other: 0.2}, []))  # type: ignore[arg-type]
    assert worse.kind == usual.kind


def test_a_graph_is_tried_too_where_the_usual_plan_finds_less() -> None:
    problem, tried = problem_of(400), list[str]()
    kinds = {plan.kind for plan in list_plans(problem)}
    assert make_plan(problem).kind == "refined"
    chosen = choose_measured(problem, finding(dict.fromkeys(kinds, 0.3) | {"graph": 0.9}, tried))  # type: ignore[arg-type]
    assert chosen.kind == "graph"


def test_what_fits_nowhere_is_refused_before_anything_is_tried() -> None:
    tried = list[str]()
    with pytest.raises(IndexBuildError, match="no index of 400,000 x 64 vectors fits"):
        choose_measured(problem_of(0.1), finding({}, tried))  # type: ignore[arg-type]
    assert not tried


def test_the_settings_are_those_whose_recall_is_worth_their_time_and_in_time() -> None:
    plan = make_plan(problem_of())
    found = dict(zip(LIST_EFFORTS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), strict=True))
    best = with_measured(plan, problem_of(), found, found, 400_000)
    assert (best.recall, best.promised, best.measured_on) == (0.8, plan.recall, 400_000)
    wanted = with_measured(plan, problem_of(wanted_recall=0.3), found, found, 400_000)  # with what is asked on top
    assert wanted.recall == 0.6
    fast = with_measured(plan, problem_of(max_query_ms=best.query_ms / 2), found, found, 400_000)
    assert fast.recall < 0.8
    assert fast.query_ms <= best.query_ms / 2


def test_few_lists_are_not_all_looked_into() -> None:
    plan = make_plan(problem_of())
    assert max(effort.breadth for effort in list_efforts_of(plan, 64)) == 32
    assert list_efforts_of(plan, 1) == [Effort(1, 4), *SHARE_EFFORTS]
    assert [effort.breadth_in(64) for effort in SHARE_EFFORTS] == [8, 16, 32]
