"""Threads for work that may be needed soon; they end early if it is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread, current_thread


class NoLongerWantedError(Exception):
    """The work of a Stoppable thread is no longer wanted; only the thread itself sees this."""


class Stoppable(Thread):
    """A thread for optional work. Its errors are dropped: code that needs its result repeats it, and gets them."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.is_unwanted = Event()

    def run(self) -> None:
        with suppress(Exception):
            self.work()

    def stop(self) -> None:
        """End it at its next call of `go_on_if_wanted`, and wait for that."""
        self.is_unwanted.set()
        if self.ident is not None:  # Ctrl-C may come before it is started
            self.join()


def go_on_if_wanted() -> None:
    """Raise NoLongerWantedError in a Stoppable thread that was stopped; other threads always go on."""
    thread = current_thread()
    if isinstance(thread, Stoppable) and thread.is_unwanted.is_set():
        raise NoLongerWantedError
