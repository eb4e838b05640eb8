"""How far a run is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


class Report(Protocol):
    """What a worker tells while it works."""

    estimate_total: Callable[[], int | None]

    def advance(self, rows: int, dropped: int) -> None: ...


class Lines:
    """Logs a line every few seconds: for logs and pipes."""

    def __init__(self) -> None:
        self.estimate_total: Callable[[], int | None] = lambda: None
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, rows: int, dropped: int) -> None:
        self.done += rows + dropped
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            rate = self.done / (now - self.start)
            total = self.estimate_total()
            left = f", about {max(0, total - self.done) / rate:.0f} s left" if total and rate else ""
            of_total = f" of about {total:,}" if total else ""
            logger.info("%s%s samples, %.1f/s%s", f"{self.done:,}", of_total, rate, left)


class Bar:
    """Moves a bar with rate and time left: for terminals."""

    def __init__(self, progress: Progress) -> None:
        self.estimate_total: Callable[[], int | None] = lambda: None
        self.progress = progress
        self.start = time.monotonic()
        self.done = 0
        self.task = progress.add_task("embedding", total=None, rate="")

    def advance(self, rows: int, dropped: int) -> None:
        self.done += rows + dropped
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        self.progress.update(self.task, completed=self.done, total=self.estimate_total(), rate=f"{rate:.1f}/s")


@contextmanager
def show_progress() -> Iterator[Report]:
    """Give a report that people can watch."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress)
