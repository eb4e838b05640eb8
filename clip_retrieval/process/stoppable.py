"""Threads that do what may be wanted soon, and end early where it is not wanted after all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread, current_thread


class NoLongerWantedError(Exception):
    """The work of a Stoppable thread is not wanted any more; nobody but the thread sees this."""


class Stoppable(Thread):
    """A thread that tries to do something. Its errors are dropped: whoever needs the work does it again, and hears."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.is_unwanted = Event()

    def run(self) -> None:
        with suppress(Exception):
            self.work()

    def stop(self) -> None:
        """End it where its work asks next, and wait for that."""
        self.is_unwanted.set()
        if self.ident is not None:  # Ctrl-C may come before it is started
            self.join()


def go_on_if_wanted() -> None:
    """Raise NoLongerWantedError in a Stoppable thread that was stopped; other threads always go on."""
    thread = current_thread()
    if isinstance(thread, Stoppable) and thread.is_unwanted.is_set():
        raise NoLongerWantedError
