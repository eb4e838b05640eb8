"""The outcome of `export`, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clip_retrieval.commands.reports.console import make_table, open_console, print_table
from clip_retrieval.words import counted

if TYPE_CHECKING:
    from clip_retrieval.export.check import Finding
    from clip_retrieval.export.run import ExportResult

SIGNS = {True: "yes", False: "NO", None: "-"}


def print_export(result: ExportResult) -> None:
    """Print what was compared, what was left out, and whether both sides are the same."""
    table = make_table(["check", "here", f"in {result.to}", "ms/query", "right"], numbers=["ms/query"])
    for finding in result.findings:
        table.add_row(finding.what, finding.here, finding.there, milliseconds(finding), SIGNS[finding.is_right])
    print_table(table)
    console = open_console()
    for note in result.notes:
        console.print(f"note: {note}", style="yellow")
    for count, why in ((result.empty, "without an embedding"), (result.unmet, "that do not meet the condition")):
        if count:
            console.print(f"left out: {counted(count, 'row')} {why}", style="dim")
    if result.done_before:
        console.print(f"an earlier run had done {counted(result.done_before, 'row')}", style="dim")
    taken = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    what = "the embeddings" if result.vectors == "embeddings" else "the codes"
    console.print(f"{result.target}: {counted(result.exported, 'row')}, {what} of {result.folder} ({taken})")
    if not result.is_right:
        console.print("the check found a difference: see NO above", style="bold red")


def milliseconds(finding: Finding) -> str:
    return f"{finding.figures['ms_each']:.2f}" if "ms_each" in finding.figures else ""
