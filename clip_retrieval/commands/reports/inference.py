"""The outcome of a run, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from clip_retrieval.commands.reports.console import make_table, open_console
from clip_retrieval.encoder.picture_warnings import in_one_line
from clip_retrieval.layout import PLAN
from clip_retrieval.words import counted

if TYPE_CHECKING:
    from clip_retrieval.inference.plan import PlannedRun
    from clip_retrieval.inference.revisions.revised import Revised
    from clip_retrieval.inference.summary import RunSummary


SUMMED_REASONS = 12


def print_summary(summary: RunSummary) -> None:
    """Print rows, what was left out and why, the rate, and where the time went."""
    console, stats = open_console(), summary.stats
    console.print(f"{stats.sample_count:,} rows in {summary.output_folder}")
    if stats.image_count or stats.text_count:
        console.print(
            f"  {counted(stats.image_count, 'picture')} and {counted(stats.text_count, 'caption')} embedded"
            f"{truncation(summary)}"
        )
    if stats.deleted_count:
        console.print(f"  {counted(stats.deleted_count, 'row')} empty: no longer in the input")
    if summary.revised is not None:
        console.print(f"  {revised_line(summary.revised)}")
    if summary.already_done:
        console.print(f"  {summary.already_done} of {summary.partition_count} partitions were done before")
    if summary.wall_seconds:
        console.print(f"  {summary.wall_seconds:.1f} s, {summary.rate:.1f} samples/s: {summary.shares}")
        console.print(f"  {summary.diagnosis.sentence}")
    print_reasons(console, summary)
    if stats.sample_count and not stats.text_count and stats.image_count + stats.deleted_count < stats.sample_count:
        console.print("  most rows have no embedding; see failures/")


def print_plan(run: PlannedRun) -> None:
    """Print what was planned, and how to go on."""
    console = open_console()
    console.print(f"{counted(len(run.partitions), 'partition')}, {len(run.missing):,} to make: {run.folder.path(PLAN)}")
    console.print("  make some with `clip-retrieval inference.worker TASKS` and the same options, on any machine;")
    console.print(f"  `clip-retrieval status {run.folder.url}` shows their progress")


def print_reasons(console: Console, summary: RunSummary) -> None:
    """Print the warnings of the decoders, and what could not be used."""
    if summary.stats.warnings:
        console.print(f"  warnings of the picture decoders: {in_one_line(summary.stats.warnings)}")
    if summary.stats.reasons:
        console.print(reason_table(summary))
        console.print("  each of these is listed in failures/*.parquet; --retry_failed tries them again")


def revised_line(revised: Revised) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in revised.to_json().items() if count or name == "kept")


def truncation(summary: RunSummary) -> str:
    count = summary.stats.truncated_captions
    return f" ({count:,} captions were cut to the model's context length)" if count else ""


def reason_table(summary: RunSummary) -> Table:
    """Return a table of what could not be used; the rest of each sample may still be a row."""
    title = f"not used ({counted(summary.stats.skipped_count, 'sample')} left out)"
    table = make_table(["part", "reason", "count"], title=title, numbers=("count",))
    for name, count in summary.stats.reasons.most_common(SUMMED_REASONS):
        table.add_row(*name.split(":", 1), f"{count:,}")
    return table
