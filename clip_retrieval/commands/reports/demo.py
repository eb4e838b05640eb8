"""The outcome of the demo, for people."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rich.console import Console

from clip_retrieval.commands.reports.filter import hit_table
from clip_retrieval.demo.run import QUERIES, DemoResult

SHOWN_HITS = 4


def print_demo(result: DemoResult) -> None:
    """Print the first hits of each query, and where to look at all of them."""
    console = Console(highlight=False, markup=False, emoji=False)
    for answer in result.answers:
        console.print(hit_table(answer, SHOWN_HITS))
    count, seconds = result.summary.stats.sample_count, result.seconds
    console.print(f"{count:,} pictures embedded, indexed and asked {len(QUERIES)} times in {seconds:.0f} s.")
    console.print("Look at all hits in a browser:")
    for answer in result.answers:
        console.print(f"  {Path(answer.output_folder).absolute() / 'index.html'}", soft_wrap=True)
    folder = Path(result.indices.index_folder)
    console.print("Ask more:")
    console.print(f"  {own_command()} filter 'smiling face' {folder.parent}/smiling-face {folder}", soft_wrap=True)


def own_command() -> str:
    """Return how this command can be called again: by its name where that is on the path, else as it was."""
    return "clip-retrieval" if shutil.which("clip-retrieval") else sys.argv[0]
