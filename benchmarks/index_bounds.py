"""Indices under memory bounds, by autofaiss and by this project: what building takes, and recall at equal time.

    python benchmarks/index_bounds.py --work FOLDER [--embeddings FOLDER | --rows 200000]
        [--bounds 2GB 500MB 100MB 50MB] [--engines autofaiss ours] [--reuse 'PATH/af_{bound}']
        [--no_build] [--no_search]

Each engine builds in a process of its own: autofaiss called as the library that it is, ours by the command. Finished
builds stay in the work folder (ENGINE_BOUND, with run.json) and are taken from there in a later run; --reuse names
builds of autofaiss in other folders. Sizes count in powers of 1000.

Then both indices are opened by faiss and asked the same queries, one at a time, in turns, over a grid of search
settings and with the setting that is stored beside each. "In no more time" is the most recall that any measured
setting of one has while taking no longer than a setting of the other; medians of single queries. FOLDER of --embeddings
holds img_emb, and may hold queries_image.npy, queries_text.npy and gt_*.npy; without them rows are held out, and truth
is computed. results.json has every point with its setting, curves.svg shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from index_builds import Build, build, read_build
from index_curves import MODES, Curve, compare, explore, measure
from index_plot import draw_curves
from index_vectors import Case, make_vectors, open_case

from clip_retrieval.index.config import parse_bytes

HEADS = ("bound", "engine", "key", "build s", "CPU s", "peak MB held", "with mapped files", "file MB")
AUTOFAISS_MILLISECONDS = 10.0  # its default for a query
SIGNS = {"image": "image recall@10, ms", "text": "text recall@10, ms"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for indices, results.json, curves.svg")
    parser.add_argument("--embeddings", type=Path, help="default: CLIP-like vectors are made in the work folder")
    parser.add_argument("--rows", type=int, default=200_000, help="of the vectors that are made")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rows_per_file", type=int, default=1_000_000)
    parser.add_argument("--bounds", nargs="+", default=["2GB", "500MB", "100MB", "50MB"])
    parser.add_argument("--engines", nargs="+", default=["autofaiss", "ours"], choices=["autofaiss", "ours"])
    parser.add_argument("--available", default="16GB", help="current_memory_available")
    parser.add_argument(
        "--reuse", help="where autofaiss's indices are, with {bound}: image.index, image.json, run.json"
    )
    parser.add_argument("--rebuild", nargs="*", default=[], help="engines whose indices in the work folder are too old")
    parser.add_argument(
        "--retune", action="store_true", help="let autofaiss choose its setting anew: not built in quiet"
    )
    parser.add_argument("--no_build", action="store_true", help="measure what is there, build nothing")
    parser.add_argument("--no_search", action="store_true", help="build only")
    parser.add_argument("--queries", type=int, default=1000, help="of each kind, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slowest", type=float, default=30.0, help="ms of a query beyond which no setting is tried")
    return parser.parse_args()


def find_build(engine: str, bound: str, case: Case, args: argparse.Namespace) -> Build | None:
    is_elsewhere = engine == "autofaiss" and args.reuse
    folder = Path(args.reuse.format(bound=bound)) if is_elsewhere else args.work / f"{engine}_{bound}"
    if (folder / "run.json").exists() and engine not in args.rebuild:
        return read_build(engine, folder)
    if args.no_build or is_elsewhere:
        print(f"{engine} under {bound} is left out: {folder} has no run.json")
        return None
    return build(engine, case.folder, folder, (f"{parse_bytes(bound)}B", f"{parse_bytes(args.available)}B"))


def own_setting(made: Build, args: argparse.Namespace) -> str:
    """Return the setting that is stored; or that autofaiss would store now, as it times queries to choose one."""
    if made.engine != "autofaiss" or not args.retune:
        return made.info.get("index_param") or ""
    import faiss
    from autofaiss.external.optimize import get_optimal_hyperparameters

    index = faiss.read_index(str(made.index))
    return get_optimal_hyperparameters(index, made.info["index_key"], max_speed_ms=AUTOFAISS_MILLISECONDS)


def run_bound(bound: str, case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Build and measure under one bound; everything that was found, as it goes to the json."""
    builds = {engine: made for engine in args.engines if (made := find_build(engine, bound, case, args))}
    found = {engine: made for engine, made in builds.items() if not made.refusal}
    curves: dict[str, Curve] = {}
    if found and not args.no_search:
        curves = {
            engine: explore(made.index, own_setting(made, args), case, args.slowest) for engine, made in found.items()
        }
        measure(list(curves.values()), case, args.rounds)
    result: dict[str, Any] = {"bound": bound, "engines": {}, "comparison": {}}
    for engine, made in builds.items():
        curve = curves.get(engine)
        result["engines"][engine] = {
            "usage": asdict(made.usage) if made.usage else None,
            "refusal": made.refusal,
            "is_reused": made.is_reused,
            "size": 0 if made.refusal else made.size,
            "info": made.info,
            "own": curve.own.to_json() if curve else None,
            "points": [point.to_json() for point in curve.points] if curve else [],
        }
    if len(curves) > 1:
        result["comparison"] = {
            f"{modality}, {mode}": compare(curves["autofaiss"], curves["ours"], (modality, mode))
            for modality in case.queries
            for mode in MODES
        }
    return result


def build_table(results: list[dict[str, Any]], case: Case) -> str:
    heads = [*HEADS, "own setting", *(SIGNS[modality] for modality in case.queries)]
    lines = [heads, ["---"] * len(heads)]
    for result in results:
        for engine, found in result["engines"].items():
            lines.append([result["bound"], engine, *build_cells(found), *own_cells(found["own"], case)])
    return to_markdown(lines)


def build_cells(found: dict[str, Any]) -> list[str]:
    if found["refusal"]:
        return [f"refused: {found['refusal']}", *[""] * 5]
    usage, key = found["usage"], found["info"].get("index_key", "?")
    if found["is_reused"]:  # built beside other work: its processor time is the least that its wall time can be
        least = usage["cpu_seconds"] / MODES["all threads"]
        seconds, held = f"at least {least:,.0f} ({usage['wall_seconds']:,.0f} beside other work)", "not known"
    else:
        seconds, held = f"{usage['wall_seconds']:,.1f}", f"{usage['held_megabytes']:,.0f}"
    mapped = max(size for size in (usage["mapped_megabytes"], usage["largest_megabytes"]) if size == size)
    size = f"{found['size'] / 1e6:,.1f}"
    return [key, seconds, f"{usage['cpu_seconds']:,.1f}", held, f"{mapped:,.0f}", size]


def own_cells(own: dict[str, Any] | None, case: Case) -> list[str]:
    if own is None:
        return ["", *("" for _ in case.queries)]
    times = own["ms"]
    return [
        own["setting"] or "none",
        *(f"{own['recall@10'][name]:.3f}, {times[f'{name}, one thread']['median']:.2f}" for name in case.queries),
    ]


def comparison_table(results: list[dict[str, Any]]) -> str:
    heads = ["bound", "queries", "autofaiss, its setting", "ours in no more time", "difference"]
    heads += [
        "least difference over its curve",
        "ours reaches its recall in",
        "ours, own setting",
        "autofaiss in that time",
    ]
    lines = [heads, ["---"] * len(heads)]
    for result in results:
        for queries, found in result["comparison"].items():
            least, faster = found["least gain"], found["points faster than any of ours"]
            curve = "" if least is None else f"{least:+.3f} at {found['points']} settings; "
            curve += f"{faster} are faster than any of ours"
            gain, same = found["gain"], found["same recall"]
            lines.append(
                [
                    *(result["bound"], queries, tell(found["own"]), tell(found["ours within"], with_setting=True)),
                    *(
                        "none" if gain is None else f"{gain:+.3f}",
                        curve,
                        f"{same['ms']:.2f} ms" if same else "never",
                    ),
                    *(tell(found["our own"]), tell(found["theirs within"])),
                ]
            )
    return to_markdown(lines)


def tell(point: dict[str, Any] | None, *, with_setting: bool = False) -> str:
    if point is None:
        return "none so fast"
    setting = f" ({point['setting']})" if with_setting and point["setting"] else ""
    return f"{point['recall']:.3f} in {point['ms']:.2f} ms{setting}"


def to_markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def tell_machine(case: Case) -> str:
    asked = ", ".join(f"{len(rows):,} {name} queries" for name, rows in case.queries.items())
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("faiss-cpu", "autofaiss", "numpy"))
    return f"{case.row_count:,} x {case.dim}; {asked}; {cores} cores, Python {platform.python_version()}, {packages}"


def main() -> None:
    args = parse_arguments()
    folder = args.embeddings
    if folder is None:
        folder = args.work / "vectors"
        make_vectors(folder, args.rows, args.dim, args.rows_per_file)
    case = open_case(folder, args.work / "staged", args.queries)
    print(tell_machine(case), flush=True)
    results = []
    for bound in args.bounds:
        results.append(run_bound(bound, case, args))
        print(f"{bound}: done", flush=True)
        report = {"machine": tell_machine(case), "results": results}
        (args.work / "results.json").write_text(json.dumps(report, indent=1))
    (args.work / "curves.svg").write_text(draw_curves(results, list(case.queries)))
    print(f"\n{build_table(results, case)}\n")
    if any(result["comparison"] for result in results):
        print(comparison_table(results))


if __name__ == "__main__":
    main()
