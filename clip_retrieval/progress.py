"""How far a command is: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch", bound=Sized)  # of rows

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]

TITLE = TextColumn("{task.description}")
COUNTING = (TITLE, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def open_progress(*columns: ProgressColumn) -> Progress:
    """Return bars on stderr that are gone at the end; without a terminal there they show nothing."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def show_progress(what: str, total: int) -> Iterator[Advance]:
    """Give a function that is told how many more are done."""
    with open_progress(*COUNTING) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


class RowBar:
    """Counts rows as they pass: by a bar on a terminal, now and then by a line elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.said = title, total, time.monotonic()
        self.done = 0.0
        self.progress = open_progress(*COUNTING)
        self.bar: TaskID = self.progress.add_task(title, total=total)

    def __enter__(self) -> RowBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, batches: Iterable[Batch], share: float) -> Iterable[Batch]:
        """Pass batches of rows on; `share` of each row is done then."""
        for rows in batches:
            yield rows
            self.done += share * len(rows)
            self.progress.update(self.bar, completed=self.done)
            if not self.progress.console.is_terminal and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
                self.said = time.monotonic()
                logger.info("%s: %s of %s", self.title, f"{round(self.done):,}", f"{self.total:,}")


class Watch(Protocol):
    """What rows pass on their way into the index, of which a pass does some share."""

    def __call__(self, batches: Iterable[Batch], share: float) -> Iterable[Batch]: ...


def unwatched(batches: Iterable[Batch], share: float) -> Iterable[Batch]:  # noqa: ARG001 -- as Watch has it
    """Pass rows on."""
    return batches


def make_bar() -> Progress:
    """Return a bar for bytes that are fetched."""
    return open_progress(TITLE, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
