"""The hits of a query, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_retrieval.layout import CAPTION, IMAGE_PATH

if TYPE_CHECKING:
    from clip_retrieval.filter.run import FilterResult

SHOWN_HITS = 10


def print_result(result: FilterResult) -> None:
    """Print the first hits and where all of them are."""
    console = Console(highlight=False, markup=False, emoji=False)
    if result.query.warning:
        console.print(f"note: {result.query.warning}", style="yellow")
    console.print(hit_table(result))
    left = result.table.num_rows - SHOWN_HITS
    if left > 0:
        console.print(f"… and {left} more")
    if result.unreadable:
        console.print(f"{result.unreadable} pictures could not be read; the sheet says why", style="yellow")
    console.print(f"all of them: {result.output_folder}/index.html, results.parquet, results.json", soft_wrap=True)


def hit_table(result: FilterResult, shown: int = SHOWN_HITS) -> Table:
    """Return the first hits as a table."""
    rows = result.table.num_rows
    title = f"{rows} hits for {result.query.text!r}" if rows else f"no hit for {result.query.text!r}"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("rank", "similarity"):
        table.add_column(heading, justify="right")
    names = [name for name in (CAPTION, IMAGE_PATH, "url") if name in result.table.column_names]
    for name in names:
        table.add_column(name, overflow="fold")
    for hit in result.table.slice(0, shown).to_pylist():
        values = ["" if hit[name] is None else str(hit[name]) for name in names]
        table.add_row(str(hit["rank"]), f"{hit['similarity']:.4f}", *map(Text, values))
    return table
