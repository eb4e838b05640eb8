"""Parts that are made on this machine, one after the other, with a bar that shows how far they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from clip_retrieval.index.costs import ROWS_OF_PART
from clip_retrieval.index.distributed.tasks import Batch

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0

Task = TypeVar("Task")


@dataclass(frozen=True)
class Here:
    """A value where it is."""

    value: bytes


class LocalRunner:
    """Runs tasks in this process, on all cores that faiss was given."""

    cores_of_task: int | None = None
    rows_of_task: int | None = ROWS_OF_PART
    is_here = True

    def share(self, value: bytes) -> Here:
        """Return the value, for tasks to read."""
        return Here(value)

    def run(self, title: str, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Run the function on one task after the other."""
        for task in tasks:
            logger.debug("%s: %s", title, task)
            function(task)


class RowBar:
    """Counts rows as they pass: by a bar on a terminal, now and then by a line elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.title, self.total, self.said = title, total, time.monotonic()
        self.done = 0.0
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.is_terminal = console.is_terminal
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
            if not self.is_terminal and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
                self.said = time.monotonic()
                logger.info("%s: %s of %s", self.title, f"{round(self.done):,}", f"{self.total:,}")
