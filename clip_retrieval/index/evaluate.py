"""How good a built index is, for queries of both modalities, and the settings that its searches are to take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from clip_retrieval.index.bench import TIMED_K, Bench, Search, summarise
from clip_retrieval.index.knobs import REFINED, find_knobs, reconstruction_error
from clip_retrieval.index.parameters import Settings, search_parameters, settings_of
from clip_retrieval.index.quality import RECALLS, CurvePoint, Quality, QueryQuality
from clip_retrieval.index.queries import draw_queries
from clip_retrieval.index.search import Index
from clip_retrieval.index.truth import Ids, Rows, find_truth
from clip_retrieval.index.tuning import SettingValues, Target, Trial, tune
from clip_retrieval.index.vectors import Vectors
from clip_retrieval.layout import MODALITIES, Modality

TUNING_QUERIES = 64  # of each modality
TUNING_TIMES = 12  # single queries of each modality that are timed for each trial
TUNING_PERCENTILE = 25  # of those times: what else the machine does only ever adds to a few of them
TIMED_QUERIES = 100  # of each modality, with the settings that are taken


@dataclass(frozen=True)
class Chosen:
    """Settings, and what else was tried."""

    settings: Settings
    curve: tuple[CurvePoint, ...]
    target: Target | None


def evaluate_index(
    index: Index, modality: Modality, found: Mapping[Modality, Vectors], target: Target | SettingValues
) -> Quality:
    """Measure an index of one modality of the embeddings `found`; it is not changed.

    With a target, the search settings that serve it best are looked for first; else those that are given are taken,
    and for those that are not, what the index itself was set to.
    """
    start = time.perf_counter()
    queries = draw_queries(modality, found)
    truths = find_truth(found[modality], list(queries.values()))
    bench = Bench(make_search(index), dict(zip(queries, truths, strict=True)))
    if isinstance(target, Target):
        chosen = choose_settings(index.index, bench, target)
    else:
        chosen = Chosen(told(index.index, target), (), target=None)
    quality = measure(index.index, bench, chosen)
    own = queries[modality]
    error = None if own.own_ids is None else reconstruction_error(index.index, own.own_ids.tolist(), own.rows)
    return replace(quality, reconstruction_error=error, seconds=time.perf_counter() - start)


def make_search(index: Index) -> Search:
    def search(queries: Rows, k: int, settings: SettingValues) -> Ids:
        empty = index.empty_rows
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(empty)) if len(empty) else None
        parameters = search_parameters(index.index, settings, selector)
        ids: Ids = index.index.search(queries, k, params=parameters)[1]
        return ids

    return search


def told(index: Any, values: SettingValues) -> Settings:
    """Return settings that the index knows: those given, else its own; what is switched off is not worth a word."""
    own = settings_of(index)
    graph = "quantizer_efSearch"
    if "efSearch" in values and "efSearch" not in own:  # which means the only graph that there is, as in faiss
        values = {graph: values["efSearch"], **values}
    known = {name: value for name, value in values.items() if name in own}
    return Settings({name: value for name, value in (own | known).items() if value != 0 or name in known})


def choose_settings(index: Any, bench: Bench, target: Target) -> Chosen:
    """Walk over the settings that the index has, on some of the queries."""
    knobs, few = find_knobs(index), bench.first(TUNING_QUERIES)
    if not knobs:
        return Chosen(told(index, {}), (), target)
    points: dict[Settings, CurvePoint] = {}

    def try_settings(values: SettingValues) -> Trial:
        settings = told(index, values)
        points[settings] = point = try_once(few, settings)
        return Trial(settings, mean(point.recalls.values()), point.ms)

    best, curve = tune(knobs, try_settings, target)
    return Chosen(Settings(best.settings), tuple(points[Settings(trial.settings)] for trial in curve), target)


def try_once(bench: Bench, settings: Settings) -> CurvePoint:
    found = bench.recalls(settings, (TIMED_K,))
    times = np.concatenate(list(bench.milliseconds(settings, TUNING_TIMES).values()))
    return CurvePoint(
        settings,
        {modality: by_k[TIMED_K] for modality, by_k in found.items()},
        float(np.percentile(times, TUNING_PERCENTILE)),
    )


def mean(recalls: Iterable[float | None]) -> float:
    """Return the mean of the recalls that there are; 1 where a query has nothing to find."""
    known = [recall for recall in recalls if recall is not None]
    return sum(known) / len(known) if known else 1.0


def measure(index: Any, bench: Bench, chosen: Chosen) -> Quality:
    """Measure the chosen settings on all queries."""
    is_nested = not any(knob.name in REFINED for knob in find_knobs(index))
    recalls: dict[Modality, dict[int, float | None]] = {modality: {} for modality in bench.truths}
    for ks in (RECALLS,) if is_nested else ((k,) for k in RECALLS):
        for modality, by_k in bench.recalls(chosen.settings, ks).items():
            recalls[modality].update(by_k)
    times = bench.milliseconds(chosen.settings, TIMED_QUERIES)
    by_modality: dict[Modality, QueryQuality | None] = dict.fromkeys(MODALITIES)
    for modality, truth in bench.truths.items():
        by_modality[modality] = QueryQuality(len(truth.queries), recalls[modality], summarise(times[modality]))
    overall = summarise(np.concatenate(list(times.values())))
    return Quality(chosen.settings, by_modality, overall, chosen.curve, chosen.target)
