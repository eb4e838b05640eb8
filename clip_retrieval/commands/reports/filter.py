"""The hits of a query, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from clip_retrieval.commands.reports.console import Cell, make_table, open_console, print_table
from clip_retrieval.layout import CAPTION, IMAGE_PATH
from clip_retrieval.words import counted

if TYPE_CHECKING:
    from clip_retrieval.filter.run import FilterResult

SHOWN_HITS = 10


def print_result(result: FilterResult) -> None:
    """Print the first hits and where all of them are."""
    console = open_console()
    if result.query.warning:
        console.print(f"note: {result.query.warning}", style="yellow")
    print_table(hit_table(result))
    left = result.table.num_rows - SHOWN_HITS
    if left > 0:
        console.print(f"… and {left} more")
    for sentence in result.how:
        console.print(sentence, style="dim")
    if result.unreadable:
        console.print(f"{counted(result.unreadable, 'picture')} could not be read; the sheet says why", style="yellow")
    console.print(f"all of them: {result.output_folder}/index.html, results.parquet, results.json")


def hit_table(result: FilterResult, shown: int = SHOWN_HITS) -> Table:
    """Return the first hits as a table."""
    rows = result.table.num_rows
    found = counted(rows, "hit") if rows else "no hit"
    names = [name for name in (CAPTION, IMAGE_PATH, "url") if name in result.table.column_names]
    table = make_table(
        ["rank", "similarity", *names], title=f"{found} for {result.query.text!r}", numbers=("rank", "similarity")
    )
    for hit in result.table.slice(0, shown).to_pylist():
        values = [("" if hit[name] is None else str(hit[name]), name == IMAGE_PATH) for name in names]
        cells = [Cell(value, keeps_end=is_path) for value, is_path in values]
        table.add_row(str(hit["rank"]), f"{hit['similarity']:.4f}", *cells)
    return table
