"""The walk over search settings, on made-up indices whose recall and time are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count, pairwise

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.index.measuring import tuning
from clip_retrieval.index.measuring.tuning import Knob, Measure, Target, Trial, frontier, tune

DOUBLING = tuple(2.0**i for i in range(13))
KNOBS = [Knob("nprobe", DOUBLING, 3), Knob("k_factor_rf", DOUBLING[:8], 0)]


def recall_of(settings: Mapping[str, float]) -> float:
    """Return what lists leave over times what refinement leaves over; both knobs saturate."""
    return float(1 - 0.6 / settings["nprobe"] ** 0.8) * float(1 - 0.4 / settings["k_factor_rf"] ** 1.5)


def ms_of(settings: Mapping[str, float]) -> float:
    return 0.05 + 0.004 * settings["nprobe"] + 0.002 * settings["k_factor_rf"]


@pytest.fixture
def counted() -> tuple[Measure, list[Mapping[str, float]]]:
    tried: list[Mapping[str, float]] = []

    def measure(settings: Mapping[str, float]) -> Trial:
        tried.append(settings)
        return Trial(settings, recall_of(settings), ms_of(settings))

    return measure, tried


Counted = tuple[Measure, list[Mapping[str, float]]]


def grid() -> list[Trial]:
    everything = [{"nprobe": p, "k_factor_rf": f} for p in KNOBS[0].values for f in KNOBS[1].values]
    return [Trial(settings, recall_of(settings), ms_of(settings)) for settings in everything]


@pytest.mark.parametrize("max_ms", [0.1, 0.3, 1.0, 3.0, 10.0, 100.0])
def test_the_walk_finds_what_the_whole_grid_holds(counted: Counted, max_ms: float) -> None:
    chosen, _ = tune(KNOBS, counted[0], Target(max_ms))
    possible = [trial for trial in grid() if trial.ms <= max_ms]
    best = max(trial.recall for trial in possible)
    assert chosen.ms <= max_ms
    assert chosen.recall >= best - 0.002
    assert chosen.ms <= 1.1 * min(trial.ms for trial in possible if trial.recall >= chosen.recall)
    assert len(counted[1]) < len(grid()) / 2
    assert len(counted[1]) == len({tuple(settings.items()) for settings in counted[1]})


def test_queries_are_not_slow_by_design(counted: Counted) -> None:
    chosen, _ = tune(KNOBS, counted[0], Target(1_000.0))
    assert max(trial.recall for trial in grid()) - chosen.recall <= 0.002
    assert chosen.ms < 0.6 * max(trial.ms for trial in grid())


def test_more_time_never_means_less_recall(counted: Counted) -> None:
    recalls = [tune(KNOBS, counted[0], Target(ms))[0].recall for ms in (0.06, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)]
    assert all(later >= earlier - 0.001 for earlier, later in pairwise(recalls))
    assert recalls[-1] > recalls[0]


@pytest.mark.parametrize("wanted", [0.6, 0.8, 0.9, 0.95, 0.98])
def test_a_wanted_recall_is_reached_by_the_fastest_settings(counted: Counted, wanted: float) -> None:
    chosen, _ = tune(KNOBS, counted[0], Target(100.0, wanted))
    fastest = min(trial.ms for trial in grid() if trial.recall >= wanted)
    assert chosen.recall >= wanted
    assert chosen.ms <= 1.2 * fastest


def test_a_recall_that_cannot_be_reached_gives_the_best_there_is(counted: Counted) -> None:
    chosen, _ = tune(KNOBS, counted[0], Target(0.5, 0.999))
    assert chosen.ms <= 0.5
    assert chosen.recall >= max(trial.recall for trial in grid() if trial.ms <= 0.5) - 0.001


def test_where_no_settings_are_fast_enough_the_fastest_is_taken(counted: Counted) -> None:
    chosen, _ = tune(KNOBS, counted[0], Target(0.001))
    assert chosen.ms <= ms_of({"nprobe": 8.0, "k_factor_rf": 1.0})


def test_an_index_without_settings_is_measured_once() -> None:
    chosen, curve = tune([], lambda settings: Trial(settings, 1.0, 20.0), Target(10.0))
    assert chosen == Trial({}, 1.0, 20.0)
    assert curve == [chosen]


def test_knobs_that_help_only_together_are_turned_together() -> None:
    def measure(settings: Mapping[str, float]) -> Trial:
        least = min(settings["nprobe"] / 8, settings["k_factor_rf"])
        return Trial(settings, 1 - 0.5 / least, ms_of(settings))

    assert tune(KNOBS, measure, Target(10.0))[0].recall > 0.99


def test_a_trial_that_was_held_up_is_not_taken_for_slow() -> None:
    def measure(settings: Mapping[str, float]) -> Trial:
        held_up = 50 if settings["nprobe"] == 16 else 0
        return Trial(settings, min(1.0, 0.5 + 0.03 * settings["nprobe"]), ms_of(settings) + held_up)

    chosen, curve = tune(KNOBS, measure, Target(60.0, 0.97))
    assert chosen.settings["nprobe"] == 16
    assert chosen.ms < 1
    assert [trial.ms for trial in curve] == sorted(trial.ms for trial in curve)


@pytest.mark.parametrize(
    "target", [Target(0.1), Target(0.3), Target(1.0), Target(wanted_recall=0.9), Target(0.2, wanted_recall=0.99)]
)
def test_other_load_that_ends_does_not_cost_recall(
    counted: Counted, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    monkeypatch.setattr(tuning, "PAUSE", 0)
    times = count()

    def measure_slowed(settings: Mapping[str, float]) -> Trial:
        return Trial(settings, recall_of(settings), 1.8 * ms_of(settings))

    def measure_time(settings: Mapping[str, float]) -> float:
        return ms_of(settings) * (1 if next(times) % 3 else 1.8)

    at_rest, _ = tune(KNOBS, counted[0], target)
    hasty, _ = tune(KNOBS, measure_slowed, target)
    careful, _ = tune(KNOBS, measure_slowed, target, measure_time)
    assert careful.recall >= at_rest.recall - 0.005
    assert ms_of(careful.settings) <= 1.1 * at_rest.ms
    if target.wanted_recall is None:
        assert hasty.recall < at_rest.recall - 0.005


def test_nothing_is_timed_again_where_there_is_nothing_to_gain(counted: Counted) -> None:
    timed: list[Mapping[str, float]] = []

    def measure_time(settings: Mapping[str, float]) -> float:
        timed.append(settings)
        return ms_of(settings)

    best, _ = tune(KNOBS, counted[0], Target(1_000.0), measure_time)
    assert best.ms <= 1_000
    assert not timed


def test_the_curve_rises_in_time_and_recall(counted: Counted) -> None:
    _, curve = tune(KNOBS, counted[0], Target(10.0))
    assert 3 <= len(curve) <= 8
    assert [trial.ms for trial in curve] == sorted(trial.ms for trial in curve)
    assert [trial.recall for trial in curve] == sorted(trial.recall for trial in curve)


def test_what_is_beaten_in_both_is_off_the_curve() -> None:
    trials = [Trial({"a": 1}, 0.5, 1.0), Trial({"a": 2}, 0.4, 2.0), Trial({"a": 3}, 0.6, 3.0)]
    assert [trial.settings["a"] for trial in frontier(trials)] == [1, 3]


@pytest.mark.parametrize("make", [lambda: Target(0), lambda: Target(10, 0), lambda: Target(10, 95)])
def test_targets_that_mean_nothing_are_refused(make: Callable[[], Target]) -> None:
    with pytest.raises(ConfigError):
        make()
