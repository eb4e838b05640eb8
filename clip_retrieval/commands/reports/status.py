"""The progress of a run, for people: one line of numbers, and a table of workers and failures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from clip_retrieval.commands.reports.console import Cell, make_table, open_console
from clip_retrieval.words import counted, in_words

if TYPE_CHECKING:
    from clip_retrieval.inference.all_files import Checked
    from clip_retrieval.inference.status import RunStatus, State, Work

MOST_ROWS = 20  # workers in the table
# States that need a person come first.
ORDER: tuple[tuple[State, str], ...] = (
    ("failed", "failed"), ("lost", "lost"), ("copy", "old copy"), ("stopped", "stopped"), ("running", "running"),
)  # fmt: skip


def print_status(status: RunStatus) -> None:
    """Print the progress of a run, its workers, and its failures."""
    console = open_console()
    for line in lines_of(status):
        console.print(line)
    if status.works:
        console = open_console(wraps=True)
        console.print(table_of(status))
        for line in more_of(status):
            console.print(line)
    for line in [] if status.checked is None else checked_lines(status.checked):
        open_console().print(line)


def checked_lines(checked: Checked) -> list[str]:
    """Tell what is damaged and what makes it again, and of which files nothing tells what they were."""
    count = counted(checked.partitions, "partition")
    lines = [f"  {count} checked: {counted(len(checked.damage), 'file') if checked.damage else 'no file'} damaged"]
    lines += [f"  {one.what}; {one.again}" for one in checked.damage]
    if checked.unsummed:
        lines.append(
            f"  {counted(checked.unsummed, 'file')} of embeddings without checksums, as older versions wrote them: "
            "only their headers and sizes were compared"
        )
    return lines


def watch_run(look: Callable[[], RunStatus], seconds: float) -> None:
    """Show a run repeatedly until it is complete: in place on a terminal, elsewhere one line per look."""
    console = open_console(wraps=True)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = look()
            if console.is_terminal:
                shown: list[RenderableType] = [
                    *lines_of(status),
                    *([table_of(status)] if status.works else []),
                    *more_of(status),
                ]
                live.update(Group(*shown), refresh=True)
            else:
                open_console().print(", ".join(line.strip() for line in lines_of(status)))
            if status.is_complete:
                return
            time.sleep(seconds)


def lines_of(status: RunStatus) -> list[str]:
    counted: tuple[State, ...] = ("running", "lost", "failed")
    parts = [f"{len(status.those(state)):,} {state}" for state in counted if status.those(state)]
    if status.waiting:
        parts.append(f"{status.waiting:,} waiting")
    share = int(100 * status.done / max(1, status.partition_count))
    done = f"{status.done:,} of {status.partition_count:,} partitions done ({share} %)"
    return [f"{status.output_folder}: {', '.join([done, *parts])}", f"  {progress_of(status)}"]


def progress_of(status: RunStatus) -> str:
    total = "" if status.total is None or status.is_complete else f" of {status.total:,}"
    rows = status.row_count
    said = [f"about {status.samples:,}{total} samples" if rows is None else counted(rows, "row")]
    if status.rate:
        said.append(f"{status.rate:,.1f} samples/s")
    if status.is_complete:
        said.append("complete")
    elif status.seconds_left is not None:
        said.append(f"{in_words(status.seconds_left)} left")
    elif not status.those("running"):
        said.append("no worker is active")
    return ", ".join(said)


def rows_of(status: RunStatus) -> list[tuple[str, Work]]:
    return [(word, work) for state, word in ORDER for work in status.those(state)]


def more_of(status: RunStatus) -> list[str]:
    more = len(status.works) - MOST_ROWS
    return [f"  and {more:,} more; --json has them all"] if more > 0 else []


def table_of(status: RunStatus) -> Table:
    numbers = ("partition", "attempt", "since", "samples", "per s")
    table = make_table(["partition", "state", "attempt", "where", "since", "samples", "per s", "why"], numbers=numbers)
    for word, work in rows_of(status)[:MOST_ROWS]:
        attempt = work.attempt
        table.add_row(
            work.partition,
            word,
            f"{attempt.number}",
            Cell(where(work)),
            in_words(max(0.0, status.now - attempt.since)),
            f"{work.samples:,}",
            f"{work.rate:,.1f}",
            Cell(why(work)),
        )
    return table


def where(work: Work) -> str:
    attempt = work.attempt
    task = " ".join(f"{name.removeprefix('CLIP_RETRIEVAL_')}={value}" for name, value in attempt.task.items())
    return f"{attempt.host} {attempt.pid} {attempt.device} {task}".strip()


def why(work: Work) -> str:
    silent = f"silent for {in_words(work.silent_seconds)}" if work.state == "lost" else ""
    return ", ".join(filter(None, [work.reason or silent, "given up" if work.is_given_up else ""]))
