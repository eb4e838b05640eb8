"""Recall against time of opened indices: a grid of search settings, the best of them measured in turns, compared."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index_vectors import Case, Rows
from numpy.typing import NDArray

from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index
from clip_retrieval.search.settings import parse_settings, search_parameters

K = 10
MODES = {"one thread": 1, "all threads": len(os.sched_getaffinity(0))}
FACTORS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # candidates to refine, in multiples of k
SHORTEST_SEARCH, LONGEST_SEARCH = 16, 4096  # efSearch
TRIED_QUERIES, TIMED_QUERIES = 200, 40
STEPS_WITHOUT_GAIN, GAIN = 3, 0.001

Search = Callable[[Rows], NDArray[np.int64]]
Key = tuple[str, str]  # modality, mode


@dataclass
class Point:
    """One setting of one index: recall@10 by modality, and the milliseconds of single queries by modality and mode."""

    setting: str
    search: Search
    recall: dict[str, float] = field(default_factory=dict)
    times: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    batch_milliseconds: dict[str, float] = field(default_factory=dict)

    def milliseconds(self, modality: str, mode: str) -> float:
        return float(np.median(self.times[modality, mode]))

    def to_json(self) -> dict[str, Any]:
        timed = {
            f"{modality}, {mode}": {
                "median": round(float(np.median(times)), 4),
                "mean": round(float(np.mean(times)), 4),
                "p99": round(float(np.percentile(times, 99)), 4),
            }
            for (modality, mode), times in self.times.items()
        }
        return {"setting": self.setting, "recall@10": self.recall, "ms": timed, "batch ms": self.batch_milliseconds}


@dataclass
class Curve:
    """The settings of one index that are worth a look, and the one that is stored with it."""

    own: Point
    points: list[Point]

    @property
    def all(self) -> list[Point]:
        return [self.own, *self.points]

    def best_within(self, milliseconds: float, key: Key) -> Point | None:
        """Return the point of most recall that takes no more time."""
        fast = [point for point in self.all if point.milliseconds(*key) <= milliseconds]
        return max(fast, key=lambda point: point.recall[key[0]], default=None)

    def front(self, key: Key) -> list[Point]:
        """Return the points that no faster one reaches in recall, fastest first."""
        kept: list[Point] = []
        for point in sorted(self.all, key=lambda point: point.milliseconds(*key)):
            if not kept or point.recall[key[0]] > kept[-1].recall[key[0]]:
                kept.append(point)
        return kept


def open_searches(path: Path) -> tuple[Callable[[str], Search], Any]:
    """Return what makes a search of a setting, and faiss's tree to read the grid from.

    One file is read by plain faiss whoever wrote it; several together are searched by this project.
    """
    if path.is_file():
        index = faiss.read_index(str(path))

        def with_setting(setting: str) -> Search:
            parameters = search_parameters(index, parse_settings(setting))
            return lambda queries: index.search(queries, K, params=parameters)[1]

        return with_setting, index
    opened = open_index(IndexFolder(str(path.parent)), "image")

    def together(setting: str) -> Search:
        settings = parse_settings(setting)
        return lambda queries: np.asarray([hits.ids for hits in opened.search_many(queries, K, settings)])

    return together, faiss.read_index(str(min(path.glob("*.index"))))


def ladders(index: Any) -> Iterator[list[str]]:
    """Yield settings of growing effort, once for each share that is refined."""
    index, factors = faiss.downcast_index(index), [""]
    while True:
        if isinstance(index, faiss.IndexRefine):
            index, factors = faiss.downcast_index(index.base_index), [f",k_factor_rf={factor:g}" for factor in FACTORS]
        elif isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap | faiss.IndexIDMap2):
            index = faiss.downcast_index(index.index)
        else:
            break
    for factor in factors:
        yield [f"{effort}{factor}".strip(",") for effort in efforts(index)]


def efforts(index: Any) -> list[str]:
    if isinstance(index, faiss.IndexIVF):
        probes = steps(1, index.nlist)
        if isinstance(faiss.downcast_index(index.quantizer), faiss.IndexHNSW):
            return [f"nprobe={count},quantizer_efSearch={max(16, 2 * count)}" for count in probes]
        return [f"nprobe={count}" for count in probes]
    if isinstance(index, faiss.IndexHNSW):
        return [f"efSearch={depth}" for depth in steps(SHORTEST_SEARCH, LONGEST_SEARCH)]
    return [""]


def steps(first: int, last: int) -> list[int]:
    """Return numbers that grow by the root of two, the last one included."""
    count = int(2 * np.log2(last / first)) + 1
    return sorted({*(round(first * 2 ** (i / 2)) for i in range(count)), last})


def score(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return recall@10: the share of the ten true neighbors among ten hits."""
    wanted = truth[: len(found), :K]
    return float((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean())


def time_queries(search: Search, queries: Rows) -> list[float]:
    """Return the milliseconds of each query, asked alone."""
    times = []
    for i in range(len(queries)):
        start = time.perf_counter()
        search(queries[i : i + 1])
        times.append(1000 * (time.perf_counter() - start))
    return times


def explore(path: Path, own: str, case: Case, slowest: float) -> Curve:
    """Try the whole grid on some queries, on one thread; keep what is best for its time on either kind of query."""
    with_setting, index = open_searches(path)
    tried: list[Point] = []
    for ladder in ladders(index):
        best, idle = 0.0, 0
        for setting in ladder:
            point = try_out(Point(setting, with_setting(setting)), case)
            tried.append(point)
            recall = sum(point.recall.values())
            best, idle = (recall, 0) if recall > best + GAIN else (best, idle + 1)
            if idle == STEPS_WITHOUT_GAIN or all(np.median(times) > slowest for times in point.times.values()):
                break
    coarse = Curve(tried[0], tried[1:])
    kept = {id(point) for modality in case.queries for point in coarse.front((modality, "one thread"))}
    points = [Point(point.setting, point.search) for point in tried if id(point) in kept]
    return Curve(Point(own, with_setting(own)), points)


def try_out(point: Point, case: Case) -> Point:
    for modality, queries in case.queries.items():
        faiss.omp_set_num_threads(MODES["all threads"])
        point.recall[modality] = score(point.search(queries[:TRIED_QUERIES]), case.truth[modality])
        faiss.omp_set_num_threads(1)
        point.times[modality, "one thread"] += time_queries(point.search, queries[:TIMED_QUERIES])
    return point


def measure(curves: Sequence[Curve], case: Case, rounds: int) -> None:
    """Fill in recall over all queries, and times: in every round each index takes its turn with each setting."""
    faiss.omp_set_num_threads(MODES["all threads"])
    for point, (modality, queries) in product(in_turns(curves), case.queries.items()):
        start = time.perf_counter()
        point.recall[modality] = score(point.search(queries), case.truth[modality])
        point.batch_milliseconds[modality] = round(1000 * (time.perf_counter() - start) / len(queries), 4)
    for turn in range(rounds):
        for mode, threads in MODES.items():
            faiss.omp_set_num_threads(threads)
            for point, (modality, queries) in product(in_turns(curves), case.queries.items()):
                first = turn * TIMED_QUERIES % max(1, len(queries) - TIMED_QUERIES)
                point.search(queries[-1:])  # the caches are of the other index until then
                point.times[modality, mode] += time_queries(point.search, queries[first : first + TIMED_QUERIES])


def in_turns(curves: Sequence[Curve]) -> list[Point]:
    """Return all points, those of several curves alternating."""
    longest = max(len(curve.all) for curve in curves)
    return [curve.all[i] for i in range(longest) for curve in curves if i < len(curve.all)]


def compare(theirs: Curve, ours: Curve, key: Key) -> dict[str, Any]:
    """Return what ours finds in no more time than each setting of theirs takes."""
    modality = key[0]
    own, within = theirs.own, ours.best_within(theirs.own.milliseconds(*key), key)
    gains, faster = [], 0
    for point in theirs.front(key):
        best = ours.best_within(point.milliseconds(*key), key)
        if best is None:
            faster += 1
        else:
            gains.append(best.recall[modality] - point.recall[modality])
    own_of_ours, back = ours.own, theirs.best_within(ours.own.milliseconds(*key), key)
    return {
        "own": describe(own, key),
        "ours within": describe(within, key),
        "gain": within.recall[modality] - own.recall[modality] if within else None,
        "least gain": min(gains, default=None),
        "points": len(gains),
        "points faster than any of ours": faster,
        "our own": describe(own_of_ours, key),
        "theirs within": describe(back, key),
        "same recall": describe(fastest_reaching(ours, own.recall[modality], key), key),
    }


def fastest_reaching(curve: Curve, recall: float, key: Key) -> Point | None:
    enough = [point for point in curve.all if point.recall[key[0]] >= recall]
    return min(enough, key=lambda point: point.milliseconds(*key), default=None)


def describe(point: Point | None, key: Key) -> Mapping[str, Any] | None:
    if point is None:
        return None
    return {"recall": point.recall[key[0]], "ms": point.milliseconds(*key), "setting": point.setting}
