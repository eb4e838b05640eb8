"""The hits of a query, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from clip_retrieval.commands.reports.console import Cell, load_widths, make_table, open_console, print_table, quoted
from clip_retrieval.layout import CAPTION, IMAGE_PATH
from clip_retrieval.words import counted

if TYPE_CHECKING:
    from clip_retrieval.filter.run import FilterResult

SHOWN_HITS = 10

load_widths()  # here, since a thread imports this module during the search


def print_result(result: FilterResult) -> None:
    """Print the first hits, or the queries of a batch, and where all hits are."""
    console = open_console()
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow")
    if result.hits.is_batch:
        print_batch(result)
    else:
        print_hits(result)
    for sentence in result.how:
        console.print(sentence, style="dim")
    if result.unreadable:
        console.print(
            f"{counted(result.unreadable, 'picture')} could not be read; the column problem says why", style="yellow"
        )
    first, *others = result.files
    what = "all of them" if result.hits.count else "written"
    console.print(f"{what}: {', '.join([f'{result.output_folder}/{first}', *others])}")


def print_hits(result: FilterResult) -> None:
    """Print the first hits of one query."""
    console = open_console()
    if result.query.warning:
        console.print(f"note: {result.query.warning}", style="yellow")
    if not result.hits.count:
        console.print(f"no hit for {quoted(result.query.text)}")
        return
    print_table(hit_table(result))
    left = result.hits.count - SHOWN_HITS
    if left > 0:
        console.print(f"… and {left} more")


def print_batch(result: FilterResult) -> None:
    """Print the first queries of a batch, each with its hits, and every query that failed."""
    console, hits = open_console(), result.hits
    sizes = (hits.starts[1:] - hits.starts[:-1]).tolist()
    failed = counted(len(hits.failed), "query", "queries")
    queries = counted(len(hits.asked), "query", "queries")
    title = f"{counted(hits.count, 'hit')} for {queries}" + (f", {failed} failed" if hits.failed else "")
    table = make_table(["query", "text", "hits"], title=title, numbers=("query", "hits"))
    for asked, size in zip(hits.asked[:SHOWN_HITS], sizes, strict=False):
        table.add_row(str(asked.number), Cell(asked.text), str(size))
    print_table(table)
    left = len(hits.asked) - SHOWN_HITS
    if left > 0:
        console.print(f"… and {left:,} more")
    for asked in hits.failed[:SHOWN_HITS]:
        console.print(f"query {asked.number}: {asked.problem}", style="yellow")


def hit_table(result: FilterResult, shown: int = SHOWN_HITS) -> Table:
    """Return the first hits as a table."""
    rows = result.hits.count
    found = counted(rows, "hit")
    first = next(result.hits.blocks(0, shown))
    names = [name for name in (CAPTION, IMAGE_PATH, "url") if name in first.column_names]
    table = make_table(
        ["rank", "similarity", *names],
        title=f"{found} for {quoted(result.query.text)}",
        numbers=("rank", "similarity"),
    )
    for hit in first.to_pylist():
        values = [("" if hit[name] is None else str(hit[name]), name == IMAGE_PATH) for name in names]
        cells = [Cell(value, keeps_end=is_path) for value, is_path in values]
        table.add_row(str(hit["rank"]), f"{hit['similarity']:.4f}", *cells)
    return table
