"""Chooses search settings: a hill climb over a grid, for the best recall in the query time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from clip_retrieval.errors import ConfigError

SettingValues = Mapping[str, float]  # key: faiss's name, such as nprobe, efSearch, k_factor_rf, quantizer_efSearch
DEFAULT_QUERY_MS = 10.0
CLOSE = 0.001  # recalls this close to the best count as equal, and the fastest of them is taken
GAIN = 0.0002  # least recall that a step must add
ROUNDS = 8  # rounds of trying the neighbors of the best settings
SLOWED = 2.0  # how many times as long other load makes a query take; such phases last for parts of a second
PASSES, PAUSE = 4, 0.25  # how often slowed settings are timed again, and the seconds before each time
CURVE_POINTS = 8


@dataclass(frozen=True)
class Target:
    """The target of tuning: the best recall@10 within a query time, or the fastest settings with a wanted recall."""

    max_query_ms: float = DEFAULT_QUERY_MS
    wanted_recall: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.max_query_ms < math.inf:
            raise ConfigError(f"max_index_query_time_ms must be more than 0, not {self.max_query_ms:g}")
        if self.wanted_recall is not None and not 0 < self.wanted_recall <= 1:
            raise ConfigError(f"wanted_recall is a share between 0 and 1, such as 0.95, not {self.wanted_recall:g}")


@dataclass(frozen=True)
class Knob:
    """One setting and its values, each slower and better than the one before."""

    name: str
    values: Sequence[float]
    start: int  # index of the first value to try


Place = tuple[int, ...]  # index of the value of each knob


@dataclass(frozen=True)
class Trial:
    """Settings that were tried: recall@10, the mean over image and text queries, and the time of one query."""

    settings: SettingValues
    recall: float
    ms: float


Measure = Callable[[SettingValues], Trial]
MeasureTime = Callable[[SettingValues], float]  # milliseconds


class Walk:
    """The trials so far, by place; nothing is tried twice."""

    def __init__(self, knobs: Sequence[Knob], measure: Measure) -> None:
        self.knobs = knobs
        self.measure = measure
        self.trials: dict[Place, Trial] = {}

    def at(self, place: Place) -> Trial:
        if place not in self.trials:
            settings = {knob.name: knob.values[i] for knob, i in zip(self.knobs, place, strict=True)}
            self.trials[place] = self.measure(settings)
        return self.trials[place]

    def moved(self, place: Place, steps: Sequence[int]) -> Place:
        """Return the place some steps up or down each knob, within its values."""
        return tuple(
            min(max(i + step, 0), len(knob.values) - 1) for i, step, knob in zip(place, steps, self.knobs, strict=True)
        )


def tune(
    knobs: Sequence[Knob], measure: Measure, target: Target, measure_time: MeasureTime | None = None
) -> tuple[Trial, list[Trial]]:
    """Return the trial to take, and the best trials of each speed, fastest first.

    From fast settings it climbs two values at once, each time with the knob that adds most recall for its time, until
    the time is up or nothing adds any; then it looks around what it would choose. A few dozen trials of a grid of
    hundreds; recall is taken to rise with each knob. With `measure_time`, better settings that are too slow by little
    are timed again some moments later, and count as fast as they ever were.
    """
    walk = Walk(knobs, measure)
    climb(walk, target)
    for _ in range(ROUNDS):
        before = choose_place(smoothed(walk.trials), target)
        for steps in neighbors(len(knobs)):
            walk.at(walk.moved(before, steps))
        if choose_place(smoothed(walk.trials), target) == before:
            if measure_time is not None:
                time_again(walk, target, measure_time)
            if choose_place(smoothed(walk.trials), target) == before:
                break
    trials = smoothed(walk.trials)
    return trials[choose_place(trials, target)], frontier(trials.values())


def time_again(walk: Walk, target: Target, measure_time: MeasureTime) -> None:
    """Time again the chosen settings, and settings that would be chosen if other load has slowed them."""
    for _ in range(PASSES):
        places = find_doubtful(smoothed(walk.trials), target)
        if len(places) == 1:
            return
        time.sleep(PAUSE)
        for place in places:
            trial = walk.trials[place]
            walk.trials[place] = replace(trial, ms=min(trial.ms, measure_time(trial.settings)))


def find_doubtful(trials: Mapping[Place, Trial], target: Target) -> list[Place]:
    """Return the place to take, and places that would be better without the time that other load may have added."""
    taken = choose_place(trials, target)
    best = trials[taken]
    if target.wanted_recall is not None and best.recall >= target.wanted_recall:
        least, longest = target.wanted_recall, SLOWED * best.ms
    else:
        least, longest = best.recall + CLOSE, SLOWED * target.max_query_ms
    better = {place for place, trial in trials.items() if trial.recall >= least and trial.ms <= longest}
    return [taken, *sorted(better - {taken})]


def smoothed(trials: Mapping[Place, Trial]) -> dict[Place, Trial]:
    """Return the trials with times made monotonic in each knob.

    If more work took less time, other load had slowed the trial with less work.
    """
    return {
        place: replace(trial, ms=min(other.ms for above, other in trials.items() if is_above(above, place)))
        for place, trial in trials.items()
    }


def is_above(place: Place, other: Place) -> bool:
    return all(a >= b for a, b in zip(place, other, strict=True))


def climb(walk: Walk, target: Target) -> None:
    here = tuple(knob.start for knob in walk.knobs)
    while not is_enough(walk.at(here), target):
        ups = [walk.moved(here, steps) for steps in single_steps(len(here), 2)]
        together = walk.moved(here, [2] * len(here))
        better = best_step(walk, here, ups, target) or best_step(walk, here, [together], target)
        if better is None:
            return
        here = better


def best_step(walk: Walk, here: Place, places: Iterable[Place], target: Target) -> Place | None:
    """Return the neighbor with the most recall per time; None if no neighbor within the time adds any."""
    now = walk.at(here)
    steps = [(place, walk.at(place)) for place in places if place != here]
    gainful = [
        ((trial.recall - now.recall) / max(trial.ms - now.ms, 0.01 * now.ms), place)
        for place, trial in steps
        if trial.recall - now.recall >= GAIN and trial.ms <= target.max_query_ms
    ]
    return max(gainful)[1] if gainful else None


def is_enough(trial: Trial, target: Target) -> bool:
    return trial.ms > target.max_query_ms or (target.wanted_recall is not None and trial.recall >= target.wanted_recall)


def single_steps(count: int, size: int) -> list[list[int]]:
    return [[size if j == i else 0 for j in range(count)] for i in range(count)]


def neighbors(count: int) -> list[list[int]]:
    """Return the steps by one value, of one knob up or down, or of one up and another down."""
    return [list(steps) for steps in product((-1, 0, 1), repeat=count) if abs(sum(steps)) <= 1 and any(steps)]


def choose_place(trials: Mapping[Place, Trial], target: Target) -> Place:
    """Return the fastest place that reaches the wanted recall, else the fastest close to the best; within the time.

    If nothing is within the time, return the fastest of all.
    """
    in_time = {place: trial for place, trial in trials.items() if trial.ms <= target.max_query_ms}
    if not in_time:
        return min(trials, key=lambda place: (trials[place].ms, sum(place)))
    most = max(trial.recall for trial in in_time.values())
    wanted = most - CLOSE if target.wanted_recall is None else min(target.wanted_recall, most)
    enough = [place for place, trial in in_time.items() if trial.recall >= wanted]
    return min(enough, key=lambda place: (in_time[place].ms, sum(place)))


def frontier(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in both recall and time, fastest first, thinned to eight."""
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.ms, -trial.recall)):
        if not best or trial.recall > best[-1].recall:
            best.append(trial)
    if len(best) <= CURVE_POINTS:
        return best
    return [best[round(i * (len(best) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
