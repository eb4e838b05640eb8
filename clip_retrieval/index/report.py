"""What was built, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_retrieval.layout import MODALITIES, Modality
from clip_retrieval.sizes import in_bytes

if TYPE_CHECKING:
    from clip_retrieval.index.build import BuiltIndices
    from clip_retrieval.index.score import IndexScores


def print_indices(result: BuiltIndices) -> None:
    """Print a row for each index."""
    console = Console(highlight=False, markup=False, emoji=False)
    for line in change_lines(result):
        console.print(line)
    table = Table(title=Text(f"indices in {result.index_folder} ({result.seconds:.1f} s)"), title_justify="left")
    table.add_column("index")
    for heading in ("vectors", "dim", "size", "ms/query"):
        table.add_column(heading, justify="right")
    table.add_column("kind", overflow="fold")
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
    """Yield what an update took over."""
    if result.is_as_before:
        yield "nothing to update: the embeddings are those of the index"
        return
    for modality, change in result.changes.items():
        yield f"{modality}: {change.added:,} rows added, {len(change.emptied):,} emptied, {len(change.filled):,} filled"


def print_scores(result: IndexScores) -> None:
    """Print how good each index is, and where its settings went."""
    console = Console(highlight=False, markup=False, emoji=False)
    print_quality(console, {modality: quality.to_json() for modality, quality in result.qualities.items()})
    if result.is_tuned:
        names = " and ".join(f"{modality}.json" for modality in result.qualities)
        console.print(f"the settings are in {names} of {result.index_folder}, and are what searches take now")


def print_quality(console: Console, qualities: Mapping[Modality, Mapping[str, Any]]) -> None:
    """Print a row for each index and kind of query, from what image.json has under `quality`."""
    if not qualities:
        return
    table = Table(title="recall@k: how many of the k nearest rows are among the first k answers", title_justify="left")
    table.add_column("index")
    table.add_column("queries")
    for heading in ("@1", "@10", "@100", "ms/query", "99 % below"):
        table.add_column(heading, justify="right")
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
