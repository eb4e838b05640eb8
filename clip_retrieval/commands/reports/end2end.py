"""The outcome of `end2end`, for people."""

from __future__ import annotations

from clip_retrieval.commands.reports.console import open_console
from clip_retrieval.commands.reports.demo import own_command
from clip_retrieval.commands.reports.index import print_indices
from clip_retrieval.commands.reports.inference import print_summary
from clip_retrieval.end2end.run import End2EndResult


def print_result(result: End2EndResult) -> None:
    """Print what each stage did, and how to serve the index later."""
    print_summary(result.summary)
    print_indices(result.indices)
    open_console(wraps=True).print(f"served by: {own_command()} back {result.indices_paths}")
