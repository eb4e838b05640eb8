"""Commands in turns, each run a fresh process: wall and CPU seconds and the largest resident memory.

    python benchmarks/turns.py [--runs 12] [--remove FOLDER] 'before=PYTHON -m clip_retrieval …' 'now=PYTHON -m …'

Medians after a first round, and the least wall time. FOLDER is removed before each run, such as the output of a query.
With --written FILE the wall time ends when that file was last written, not when the process has gone.
On a machine that is busy, in the scheduler's FIFO class (`chrt -f 60 python benchmarks/turns.py …`, runs of seconds).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import time
from pathlib import Path


def run(words: list[str], written: Path | None) -> tuple[float, float, float]:
    """Return wall and CPU seconds and the largest resident MiB of a command."""
    start, began = time.perf_counter(), time.time()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(words)} ended with {process.returncode}")
    if written is not None:
        wall = written.stat().st_mtime - began  # the kernel's clock of files is up to 4 ms slow
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+", metavar="NAME=COMMAND")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--remove", type=Path)
    parser.add_argument("--written", type=Path)
    args = parser.parse_args()
    commands = {name: shlex.split(words) for name, _, words in (text.partition("=") for text in args.commands)}
    used: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for number in range(args.runs + 1):
        for name, words in commands.items():
            if args.remove is not None:
                shutil.rmtree(args.remove, ignore_errors=True)
            figures = run(words, args.written)
            if number:
                used[name].append(figures)
    print("| | wall s (least) | ratio | CPU s | ratio | MiB |\n|---|---|---|---|---|---|")
    first = None
    for name, runs in used.items():
        wall, cpu, held = (statistics.median(part) for part in zip(*runs, strict=True))
        first = first or (wall, cpu)
        least = min(figures[0] for figures in runs)
        ratios = wall / first[0], cpu / first[1]
        print(f"| {name} | {wall:.2f} ({least:.2f}) | {ratios[0]:.2f} | {cpu:.2f} | {ratios[1]:.2f} | {held:.0f} |")


if __name__ == "__main__":
    main()
