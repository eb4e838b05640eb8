"""The outcomes of the small commands, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from clip_retrieval.commands.reports.console import Cell, make_table, open_console, print_table
from clip_retrieval.tools.benchmark_report import (
    SHOWN_CLASSES,
    all_notes,
    cells,
    class_headings,
    class_rows,
    headings,
)
from clip_retrieval.words import counted, in_bytes, shorten

if TYPE_CHECKING:
    from clip_retrieval.tools.arrow import ConvertedMetadata
    from clip_retrieval.tools.benchmark import BenchmarkResult
    from clip_retrieval.tools.extract import Extracted
    from clip_retrieval.tools.inputs import Failure
    from clip_retrieval.tools.models import ModelFacts
    from clip_retrieval.tools.similarity import Similarities
    from clip_retrieval.tools.zero_shot import Labeled

SHOWN_FAILURES = 10
MOST_NAME, MOST_DETAIL = 100, 200  # characters of a failure in the list; --json has the whole text


def print_similarities(result: Similarities) -> None:
    """Print a line for each picture, a column for each text."""
    table = make_table(["picture"])
    for text in result.texts:
        table.add_column(Cell(text), justify="right")
    for name, row in zip(result.images, result.cosines, strict=True):
        table.add_row(Cell(name, keeps_end=True), *(f"{value:.4f}" for value in row))
    print_table(table)
    print_remarks(result.notes, result.failures)


def print_labels(result: Labeled) -> None:
    """Print each picture's likeliest labels."""
    numbers = ("probability", "cosine")
    title = f"{result.scores} over {counted(len(result.labels), 'label')}"
    table = make_table(["picture", "label", *numbers], title=title, numbers=numbers)
    for row, name in enumerate(result.images):
        for place, column in enumerate(result.best(row)):
            values = (f"{result.probabilities[row, column]:.4f}", f"{result.cosines[row, column]:.4f}")
            table.add_row(Cell("" if place else name, keeps_end=True), Cell(result.labels[column]), *values)
        table.add_section()
    print_table(table)
    print_remarks(result.notes, result.failures)


def print_extracted(result: Extracted) -> None:
    """Print how many rows there are, and where."""
    counts = [
        counted(count, what) for count, what in ((result.image_count, "picture"), (result.text_count, "text")) if count
    ]
    open_console().print(f"{' and '.join(counts)} embedded in {result.output_folder} ({result.dimension} dimensions)")
    print_remarks(result.notes, result.failures)


def print_converted(result: ConvertedMetadata) -> None:
    """Print each written file or folder on a line."""
    written = result.written
    facts = {
        "file": result.path,
        "rows": f"{written.rows:,}",
        "columns": ", ".join(written.columns),
        "size": in_bytes(written.size),
        "time": f"{result.seconds:.1f} s",
    }
    print_facts(facts)


def print_model(result: ModelFacts) -> None:
    """Print each known fact on a line."""
    facts = {}
    for name, value in result.to_json().items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {part}" for key, part in value.items())
        facts[name.replace("_", " ")] = "not known" if shown is None else str(shown)
    print_facts(facts)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print a line for each fact; a long one, such as a path, goes whole on the next line."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, fact)
    print_table(table)


def print_remarks(notes: Sequence[str], failures: Sequence[Failure]) -> None:
    """Print the notes, and name the pictures that were not used."""
    console = open_console()
    for note in notes:
        console.print(f"note: {note}", style="yellow")
    if failures:
        console.print(f"{counted(len(failures), 'picture')} could not be used:", style="yellow")
    for failure in failures[:SHOWN_FAILURES]:
        console.print(
            f"  {shorten(failure.image, MOST_NAME)}: {failure.reason}: {shorten(failure.detail, MOST_DETAIL)}"
        )
    if len(failures) > SHOWN_FAILURES:
        console.print(f"  … and {len(failures) - SHOWN_FAILURES:,} more; --json names all")


def as_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of a name and numbers in each row."""
    table = Table()
    for place, name in enumerate(names):
        table.add_column(Cell(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Cell, row))
    return table


def print_benchmark(result: BenchmarkResult) -> None:
    """Print the comparison, the classes, and what was left out."""
    by_model = [headings(result), *(cells(score) for score in result.models)]
    names, *measures = [
        list(line) for line in zip(*by_model, strict=True)
    ]  # a column for each model: a screen is narrow
    print_table(as_table(names, measures))
    rows = class_rows(result)
    print_table(as_table(class_headings(result), rows[:SHOWN_CLASSES]))
    if len(rows) > SHOWN_CLASSES:
        open_console().print(f"… and {len(rows) - SHOWN_CLASSES:,} classes more; --output and --json have all")
    print_remarks(all_notes(result), result.failures)
