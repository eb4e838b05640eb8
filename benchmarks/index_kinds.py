"""Indices of one folder of vectors compared: recall@10 of image and text queries against milliseconds.

    python benchmarks/index_kinds.py --work W --embeddings EMBEDDINGS INDEX [INDEX ...]

EMBEDDINGS are as for index_bounds.py; an INDEX is a file. One query at a time on one thread, all settings of all
indices in turns; a query's time is that of the fastest quarter of its rounds, as other work may run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import faiss
import numpy as np
from index_curves import Curve, Point, explore, in_turns, score, time_queries
from index_vectors import Case, open_case

ROUNDS, QUERIES, SLOWEST, GAIN = 5, 300, 6.0, 0.0005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("indices", type=Path, nargs="+")
    args = parser.parse_args()
    case = open_case(args.embeddings, args.work / "vectors", QUERIES)
    curves = {path: explore(path, "", case, SLOWEST).points for path in args.indices}
    faiss.omp_set_num_threads(1)
    points = in_turns([Curve(curve[0], curve[1:]) for curve in curves.values()])
    times: dict[tuple[int, str], list[list[float]]] = {(id(p), m): [] for p in points for m in case.queries}
    for _ in range(ROUNDS):
        for point in points:
            for modality, queries in case.queries.items():
                point.search(queries[-1:])  # the caches are of another index until then
                times[id(point), modality].append(time_queries(point.search, queries[:40]))
    for path, curve in curves.items():
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n\n| ms | image | text | mean | settings |")
        print("|---|---|---|---|---|")
        print_front(curve, times, case)


def print_front(curve: list[Point], times: dict[tuple[int, str], list[list[float]]], case: Case) -> None:
    """Print the settings that no faster one of the index reaches, by the mean recall of both kinds of query."""
    best = 0.0

    def milliseconds(point: Point) -> float:
        return float(np.mean([np.percentile(times[id(point), m], 25, axis=0) for m in case.queries]))

    for point in sorted(curve, key=milliseconds):
        found = {m: score(point.search(queries), case.truth[m]) for m, queries in case.queries.items()}
        mean = float(np.mean(list(found.values())))
        if mean > best + GAIN:
            best = mean
            recalls = " | ".join(f"{recall:.4f}" for recall in (*found.values(), mean))
            print(f"| {milliseconds(point):.3f} | {recalls} | {point.setting} |")
    print()


if __name__ == "__main__":
    main()
