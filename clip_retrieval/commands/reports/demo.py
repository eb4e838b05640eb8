"""The outcome of the demo, for people."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from clip_retrieval.commands.reports.console import open_console, print_table
from clip_retrieval.commands.reports.filter import hit_table
from clip_retrieval.demo.run import QUERIES, DemoResult

SHOWN_HITS = 4


def print_demo(result: DemoResult) -> None:
    """Print the first hits of each query, and where to look at all of them."""
    console = open_console()
    for answer in result.answers:
        print_table(hit_table(answer, SHOWN_HITS))
    count, seconds = result.summary.stats.sample_count, result.seconds
    console.print(f"{count:,} pictures embedded, indexed and searched {len(QUERIES)} times in {seconds:.0f} s.")
    console.print("Look at all hits in a browser:")
    for answer in result.answers:
        console.print(f"  {Path(answer.output_folder).absolute() / 'index.html'}")
    folder = Path(result.indices.index_folder)
    console.print("Search for more:")
    console.print(f"  {own_command()} filter 'smiling face' {folder.parent}/smiling-face {folder}")


def own_command() -> str:
    """Return the command to repeat a call: `clip-retrieval` if it is on the path, else as it was started."""
    if shutil.which("clip-retrieval"):
        return "clip-retrieval"
    return "python -m clip_retrieval" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]
