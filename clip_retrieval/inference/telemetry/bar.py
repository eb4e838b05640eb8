"""Progress of a run, for people: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from clip_retrieval.inference.telemetry.live import Live, View, repeating
from clip_retrieval.words import in_words

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LOOKS = 0.25
WIDE = 120  # columns that hold everything in one line


class Lines:
    """Logs a line at each call: for logs and pipes."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.said: str | None = None  # the limit that was last logged

    def __call__(self) -> None:
        view = self.live.look()
        if not view.stats.total_duration and not view.done:
            return  # nothing has begun: the model is being opened
        logger.info("%s samples, %s", counted(view), described(view))
        if view.settled is not None and view.settled.limit != self.said:
            self.said = view.settled.limit
            logger.info("%s", view.settled.sentence)


class Figures(ProgressColumn):
    """The words after the bar: in one line, or in two if the terminal is narrow."""

    def __init__(self, live: Live, width: int) -> None:
        super().__init__()
        self.live, self.gap = live, "; " if width >= WIDE else "\n"

    def render(self, task: Task) -> Text:  # noqa: ARG002 -- rich's signature
        view = self.live.look()
        return Text(f"{counted(view)}, {described(view, self.gap)}", no_wrap=True)


def counted(view: View) -> str:
    return f"{view.done:,}" + ("" if view.total is None else f" of about {view.total:,}")


def described(view: View, gap: str = "; ") -> str:
    """Return rate, time left and how busy each stage is."""
    left = "" if view.seconds_left is None else f", {in_words(view.seconds_left)} left"
    busy = f"{gap}{view.shares}" if view.shares.seconds else ""
    return f"{view.rate:.1f}/s{left}{busy}"


@contextmanager
def log_lines(live: Live) -> Iterator[None]:
    with repeating(SECONDS_BETWEEN_LINES, Lines(live)):
        yield


@contextmanager
def show_bar(live: Live, console: Console) -> Iterator[None]:
    """Move a bar on a terminal; above it is what limits the run, once that is known."""
    with Progress(BarColumn(bar_width=20), Figures(live, console.width), console=console) as progress:
        task = progress.add_task("embedding", total=None)
        said = ""

        def move() -> None:
            nonlocal said
            view = live.look()
            progress.update(task, completed=view.done, total=view.total)
            if view.settled is not None and view.settled.limit != said:
                said = view.settled.limit
                progress.console.print(view.settled.sentence, highlight=False, markup=False)

        with repeating(SECONDS_BETWEEN_LOOKS, move):
            yield
        move()
