"""Measures a built index with queries of both modalities, and chooses its search settings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.measuring.bench import TIMED_K, Bench, Search, summarize
from clip_retrieval.index.measuring.knobs import find_knobs, reconstruction_error
from clip_retrieval.index.measuring.quality import RECALLS, CurvePoint, Quality, QueryQuality
from clip_retrieval.index.measuring.queries import QuerySet, draw_queries
from clip_retrieval.index.measuring.truth import Effort, Ids, Rows, Truth, find_truth
from clip_retrieval.index.measuring.tuning import SettingValues, Target, Trial, tune
from clip_retrieval.layout import MODALITIES, IndexFolder, Modality
from clip_retrieval.search.files import open_parts
from clip_retrieval.search.index import Index
from clip_retrieval.search.settings import Settings

TUNING_QUERIES = 64  # queries of each modality while settings are tried
TUNING_TIMES = 12  # single queries of each modality that are timed for each trial
TUNING_PERCENTILE = 25  # percentile of those times: other work on the machine only ever adds to them
TIMED_QUERIES = 100  # queries of each modality that are timed with the chosen settings


@dataclass(frozen=True)
class ChosenSettings:
    """Settings, and what else was tried."""

    settings: Settings
    curve: tuple[CurvePoint, ...]
    target: Target | None


Truths = Mapping[Modality, Truth]  # key: modality of the queries


def find_truths(modality: Modality, found: Mapping[Modality, Vectors], effort: Effort | None = None) -> Truths:
    """Draw queries of each modality in `found`, and find the exact answers of an index of `modality`.

    Raises IndexBuildError if all its rows are zero, and CancelledError soon after it is told to stop.
    """
    effort = effort or Effort()
    queries = draw_queries(modality, found, effort.stop, effort.most_queries)
    if modality not in queries:
        folder = found[modality].folder.path(found[modality].subfolder)
        raise IndexBuildError(f"every embedding in {folder} is zero: there is nothing to measure an index with")
    truths = find_truth(found[modality], list(queries.values()), effort)
    return dict(zip(queries, truths, strict=True))


def evaluate_index(index: Index, modality: Modality, truths: Truths, target: Target | SettingValues) -> Quality:
    """Measure an index of one modality; it is not changed.

    With a target, the search settings that serve it best are looked for first; else those that are given are taken,
    and for those that are not, what the index itself was set to. Given settings are taken for any number of hits,
    others are widened for many, as searches do it.
    """
    start = time.perf_counter()
    is_given = not isinstance(target, Target) and bool(target)
    bench = Bench(make_search(index, is_literal=is_given), truths)
    if isinstance(target, Target):
        chosen = choose_settings(index, bench, target)
    else:
        chosen = ChosenSettings(told(index, target), (), target=None)
    quality = measure(bench, chosen)
    error = measure_memory(index, truths[modality].queries)
    return replace(quality, reconstruction_error=error, seconds=time.perf_counter() - start)


def evaluate_built(
    folder: IndexFolder, modality: Modality, empty_rows: Ids, truths: Truths, target: Target
) -> dict[str, Any]:
    """Measure and tune an index in a scratch folder; returns what it adds to image.json."""
    # Mapped: the build still holds its own memory.
    index = Index(open_parts(folder, modality, memory_map=True), empty_rows)
    return evaluate_index(index, modality, truths, target).info()


def measure_memory(index: Index, queries: QuerySet) -> float | None:
    """Return the reconstruction error of rows in the index's first part, whose codes all parts share; in percent."""
    assert queries.own_ids is not None
    part = index.parts[0]
    ids = queries.own_ids - part.first_row
    inside = (ids >= 0) & ((ids < part.index.ntotal) | (len(index.parts) == 1))
    return reconstruction_error(part.index, ids[inside].tolist(), queries.rows[inside])


def make_search(index: Index, *, is_literal: bool) -> Search:
    """Return a function that searches as `filter` does: with the given settings, or with those widened for k hits."""

    def search(queries: Rows, k: int, settings: SettingValues) -> Ids:
        chosen = Settings(settings) if is_literal else index.settings_for(k, Settings(settings))
        ids = np.full((len(queries), k), -1, np.int64)
        for row, hits in zip(ids, index.search_many(queries, k, chosen), strict=True):
            row[: len(hits.ids)] = hits.ids
        return ids

    return search


def told(index: Index, values: SettingValues) -> Settings:
    """Return the settings in use: those given, else the index's own; disabled ones are left out."""
    own = index.own_settings | index.settings
    graph = "quantizer_efSearch"
    if "efSearch" in values and "efSearch" not in own:  # the quantizer is the only graph
        values = {graph: values["efSearch"], **values}
    known = {name: value for name, value in values.items() if name in own}
    return Settings({name: value for name, value in (own | known).items() if value != 0 or name in known})


def choose_settings(index: Index, bench: Bench, target: Target) -> ChosenSettings:
    """Tune the index's settings with a part of the queries."""
    knobs, few = find_knobs([part.index for part in index.parts]), bench.first(TUNING_QUERIES)
    if not knobs:
        return ChosenSettings(told(index, {}), (), target)
    points: dict[Settings, CurvePoint] = {}

    def try_settings(values: SettingValues) -> Trial:
        settings = told(index, values)
        points[settings] = point = try_once(few, settings)
        return Trial(settings, mean(point.recalls.values()), point.ms)

    def time_settings(values: SettingValues) -> float:
        return time_few(few, told(index, values))

    best, curve = tune(knobs, try_settings, target, time_settings)
    tried = tuple(replace(points[Settings(trial.settings)], ms=trial.ms) for trial in curve)
    return ChosenSettings(Settings(best.settings), tried, target)


def try_once(bench: Bench, settings: Settings) -> CurvePoint:
    return CurvePoint(settings, ms=time_few(bench, settings), recalls=bench.recalls(settings, TIMED_K))


def time_few(bench: Bench, settings: Settings) -> float:
    times = np.concatenate(list(bench.milliseconds(settings, TUNING_TIMES).values()))
    return float(np.percentile(times, TUNING_PERCENTILE))


def mean(recalls: Iterable[float | None]) -> float:
    """Return the mean of the known recalls; 1 if no query has anything to find."""
    known = [recall for recall in recalls if recall is not None]
    return sum(known) / len(known) if known else 1.0


def measure(bench: Bench, chosen: ChosenSettings) -> Quality:
    """Measure the chosen settings on all queries, which many hits widen: the first ten of a hundred may be others."""
    recalls = {k: bench.recalls(chosen.settings, k) for k in RECALLS}
    times = bench.milliseconds(chosen.settings, TIMED_QUERIES)
    by_modality: dict[Modality, QueryQuality | None] = dict.fromkeys(MODALITIES)
    for modality, truth in bench.truths.items():
        by_k = {k: found[modality] for k, found in recalls.items()}
        by_modality[modality] = QueryQuality(len(truth.queries), by_k, summarize(times[modality]))
    overall = summarize(np.concatenate(list(times.values())))
    return Quality(
        settings=chosen.settings,
        by_modality=by_modality,
        times=overall,
        curve=chosen.curve,
        target=chosen.target,
    )
