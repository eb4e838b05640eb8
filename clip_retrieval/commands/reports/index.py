"""What was built, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from clip_retrieval.commands.reports.console import make_table, open_console
from clip_retrieval.index.planning.plan import fits
from clip_retrieval.layout import MODALITIES, Modality
from clip_retrieval.words import counted, in_bytes

if TYPE_CHECKING:
    from clip_retrieval.index.build import BuiltIndices
    from clip_retrieval.index.combine import CombinedIndex
    from clip_retrieval.index.planning.shapes import Plan
    from clip_retrieval.index.preview import Preview
    from clip_retrieval.index.score import IndexScores


def print_indices(result: BuiltIndices) -> None:
    """Print a row for each index."""
    console = open_console(wraps=True)
    for line in change_lines(result):
        console.print(line)
    numbers = ("vectors", "dim", "size", "ms/query")
    title = f"indices in {result.index_folder} ({result.seconds:.1f} s)"
    table = make_table(["index", *numbers, "kind"], title=title, numbers=numbers)
    for modality, info in result.infos.items():
        table.add_row(
            modality,
            f"{info['nb vectors']:,}",
            str(info["vectors dimension"]),
            in_bytes(info["size in bytes"]),
            f"{info['avg_search_speed_ms']:.2f}",
            info["index_key"],
        )
    console.print(table)
    print_quality(console, {modality: info["quality"] for modality, info in result.infos.items() if "quality" in info})


def change_lines(result: BuiltIndices) -> Iterable[str]:
    """Yield a line for each change that an update applied."""
    if result.is_as_before:
        yield "nothing to update: the embeddings have not changed since the index was built"
        return
    for modality, change in result.changes.items():
        yield f"{modality}: {change.added:,} rows added, {len(change.emptied):,} emptied, {len(change.filled):,} filled"


def print_combined(result: CombinedIndex) -> None:
    """Print a line about the combined index."""
    open_console().print(result.sentence())


def print_scores(result: IndexScores) -> None:
    """Print each index's quality, and where its settings were written."""
    console = open_console(wraps=True)
    print_quality(console, {modality: quality.to_json() for modality, quality in result.qualities.items()})
    if result.is_tuned:
        names = " and ".join(f"{modality}.json" for modality in result.qualities)
        console.print(f"the settings are in {names} of {result.index_folder}, and searches use them from now on")


def print_quality(console: Console, qualities: Mapping[Modality, Mapping[str, Any]]) -> None:
    """Print a row for each index and kind of query, from `quality` in image.json."""
    if not qualities:
        return
    numbers = ("@1", "@10", "@100", "ms/query", "99 % below")
    title = "recall@k: how many of the k nearest rows are among the first k answers"
    table = make_table(["index", "queries", *numbers], title=title, numbers=numbers)
    for modality, quality in qualities.items():
        for row in quality_rows(modality, quality):
            table.add_row(*row)
    console.print(table)
    for modality, quality in qualities.items():
        if quality["index_param"]:
            console.print(f"{modality}: searched with {quality['index_param']}")
        if quality.get("shortfall"):
            console.print(f"{modality}: {quality['shortfall']}")


def quality_rows(modality: Modality, quality: Mapping[str, Any]) -> Iterable[list[str]]:
    for asked in MODALITIES:
        measured = quality[asked]
        if measured is None:
            yield [modality, f"no {asked} embeddings", *[""] * 5]
            continue
        recalls = [measured[f"recall@{k}"] for k in (1, 10, 100)]
        shown = ["-" if recall is None else f"{recall:.3f}" for recall in recalls]
        times = [f"{measured['ms']['mean']:.2f} ms", f"{measured['ms']['p99']:.2f} ms"]
        yield [modality, f"{measured['queries']} {asked}", *shown, *times]


def recall_at_ten(said: dict[str, Any], asked: Modality) -> str:
    measured = (said.get("quality") or {}).get(asked) or {}
    return str(measured.get("recall@10", "not measured"))


def name_model(found: dict[str, Any]) -> str:
    if found["made_by"] is None and found["encoder"] is None:
        return "unknown: the folder has no manifest.json"
    return str((found["encoder"] or {}).get("clip_model", "unknown: the embeddings had no manifest.json"))


def say_checked(file_count: int) -> str:
    return (
        f"as written ({counted(file_count, 'file')})"
        if file_count
        else "no checksums: build the index again to get them"
    )


def print_info(found: dict[str, Any]) -> None:
    """Print a column for each index."""
    table = make_table(["", *found["indices"]], title=f"indices in {found['index_folder']}")
    for name in ("kind", "tree", "rows", "dimension", "size", "files", "metric", "settings", "memory_map"):
        values = [in_bytes(index["bytes"]) if name == "size" else index[name] for index in found["indices"].values()]
        table.add_row(name, *(f"{value:,}" if isinstance(value, int) else str(value) for value in values))
    for asked in MODALITIES:
        found_at = [recall_at_ten(index["said"], asked) for index in found["indices"].values()]
        table.add_row(f"recall@10, {asked} queries", *found_at)
    recalls = sorted({name for index in found["indices"].values() for name in index["said"] if "recall" in name})
    for name in recalls:
        table.add_row(name, *(str(index["said"].get(name, "")) for index in found["indices"].values()))
    if any("checked" in index for index in found["indices"].values()):
        table.add_row("check", *(say_checked(index["checked"]) for index in found["indices"].values()))
    table.add_row("model", *([name_model(found)] * len(found["indices"])))
    console = open_console(wraps=True)
    console.print(table)
    if found["options"]:
        kept = " ".join(f"--{name} {value}" for name, value in found["options"].items() if value is not None)
        console.print(f"built with {kept}", soft_wrap=True)  # one line, for copying


def describe_plan(plan: Plan, *, is_tried: bool) -> list[str]:
    """Return the costs and recalls of a plan; if plans were tried, with an extra column for CLIP embeddings."""
    if plan.is_unknown:
        return ["not tried", *[""] * (5 if is_tried else 4)]
    costs = [in_bytes(plan.index_bytes), in_bytes(plan.peak_bytes), f"{plan.seconds:,.0f} s"]
    usual = plan.promised if plan.measured_on else plan.recall
    recalls = [f"~{plan.recall:.3f}" if plan.measured_on or not is_tried else ""]
    recalls += ["" if usual is None else f"~{usual:.3f}"] if is_tried else []
    return [*costs, *recalls, f"~{plan.query_ms:,.2f}"]


def print_preview(preview: Preview) -> None:
    """Print a table for each index; an arrow marks the kind that would be built."""
    console = open_console(wraps=True)
    for modality, plans in preview.plans.items():
        problem = preview.problems[modality]
        title = f"the {modality} index of {problem.rows:,} x {problem.dim} vectors"
        is_tried = any(plan.measured_on for plan in plans)
        numbers = ("size", "memory", "time", "recall@10", *(["of CLIP"] if is_tried else []), "ms/query")
        table = make_table(["", "kind", *numbers], title=title, numbers=numbers)
        for plan in plans:
            mark = "->" if plan == preview.chosen[modality] else "" if fits(plan, problem) else "too large"
            table.add_row(mark, plan.key, *describe_plan(plan, is_tried=is_tried))
        console.print(table)
        if is_tried:
            rows = max(plan.measured_on for plan in plans)
            console.print(
                f"recall@10 was tried on {rows:,} of these rows, and is the estimate for all of them; kinds without "
                "it were not tried. `of CLIP` is the usual recall for CLIP embeddings",
                soft_wrap=True,
            )
        if modality in preview.refusals:
            console.print(preview.refusals[modality], soft_wrap=True)
    for line in (preview.note, preview.obstacle):
        if line:
            console.print(line, soft_wrap=True)
