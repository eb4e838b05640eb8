"""Progress of a command: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch", bound=Sized)  # a batch of rows

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[float], None]  # receives the number of items just done

TITLE = TextColumn("{task.description}")
COUNTED = (MofNCompleteColumn(),)
FETCHED = (DownloadColumn(), TransferSpeedColumn())


def open_progress(*columns: ProgressColumn) -> Progress:
    """Return bars on stderr that disappear at the end; without a terminal they show nothing."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def show_progress(title: str, total: int, *, is_bytes: bool = False) -> Iterator[Advance]:
    """Yield a function that adds items to the bar; safe to call from any thread."""
    counts = FETCHED if is_bytes else COUNTED
    with open_progress(TITLE, BarColumn(), *counts, TimeRemainingColumn()) as bar:
        task = bar.add_task(title, total=total)
        lines = Lines(title, total)

        def advance(count: float) -> None:
            bar.advance(task, count)
            if not bar.console.is_terminal:
                lines.advance(count)

        yield advance


class Lines:
    """Writes a line of progress at most every ten seconds."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self.said = time.monotonic()
        self.lock = Lock()

    def advance(self, count: float) -> None:
        with self.lock:
            self.done += count
            if time.monotonic() - self.said < SECONDS_BETWEEN_LINES:
                return
            self.said = time.monotonic()
            logger.info("%s: %s of %s", self.title, f"{round(self.done):,}", f"{self.total:,}")


class Watch(Protocol):
    """A wrapper of batches of rows that counts them on their way into an index."""

    def __call__(self, batches: Iterable[Batch], share: float) -> Iterable[Batch]: ...


def watch_rows(advance: Advance) -> Watch:
    """Return a watch that passes batches on and counts `share` of each row as done."""

    def watch(batches: Iterable[Batch], share: float) -> Iterator[Batch]:
        for rows in batches:
            yield rows
            advance(share * len(rows))

    return watch


def unwatched(batches: Iterable[Batch], share: float) -> Iterable[Batch]:  # noqa: ARG001 -- as Watch has it
    """Pass batches on."""
    return batches
