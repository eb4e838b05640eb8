"""Ctrl-C and SIGTERM: a command ends within seconds, tidily, and says how to go on; even while native code is busy.

Python handles a signal when native code returns, which for a batch on a large model may take a minute. So a thread
receives it too. If the command has not ended by itself in time, that thread tidies up and ends the process.

An exception that a signal handler raises inside a finalizer or weak-reference callback is lost, so it is raised again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from clip_retrieval.process.standard_streams import say_error
from clip_retrieval.process.subprocesses import kill_started

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes that shells expect
SECONDS_OF_GRACE = 2.0
SECONDS_TO_TIDY_UP = 5.0  # more, once the main thread has received it: on a busy machine workers end slowly
SECONDS_OF_A_FINALIZER = 0.01
SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it

last_words: list[Callable[[], str]] = []


class StoppedError(KeyboardInterrupt):
    """A signal asked this process to end; `exit_code` is what a shell expects then."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__("stopped; give the same command again")
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def ending_with(say: Callable[[], str]) -> Iterator[None]:
    """Call `say` when the block is interrupted, to tidy up; it returns the message of the interrupt.

    It may be called from another thread, while the block still runs.
    """
    last_words.append(say)
    try:
        yield
    except BaseException as error:
        stop = stop_behind(error)
        if stop is None:
            raise
        stop.args = (say(),)
        raise stop from (None if stop is error else error)
    finally:
        last_words.remove(say)


def stop_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that an exception is, or that it hides: cleaning up may fail too."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause


@contextmanager
def stopping_in_time() -> Iterator[None]:
    """Raise StoppedError in the block at a signal, and end the process if the block does not end then.

    More signals change nothing, not even after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    backstop = Backstop()
    before = {number: signal.signal(number, backstop.stop) for number in SIGNALS}
    heard = signal.set_wakeup_fd(backstop.bell, warn_on_full_buffer=False)
    sys.unraisablehook = backstop.hear_of_lost
    try:
        yield
    except Exception as error:
        stop = stop_behind(error) if backstop.is_stopped else None
        if stop is None:
            raise
        raise stop from error
    finally:
        sys.unraisablehook = backstop.tell_of_lost
        signal.set_wakeup_fd(heard)
        for number, handler in before.items():
            if not backstop.is_stopped:  # otherwise the process is about to end, and ignores signals
                signal.signal(number, handler)
        backstop.close()


@contextmanager
def hearing_stop() -> Iterator[threading.Event]:
    """Set an event at a signal, instead of ending the process, for a server that stops in its own time.

    A second signal has the effect it has outside of the block. Only the main thread hears signals.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = signal.set_wakeup_fd(-1)

    def restore() -> None:
        signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- a signal handler's signature
        stop.set()
        restore()

    for number in SIGNALS:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        restore()


class Backstop:
    """A thread that receives signals at once, and ends the process if nothing else does in time."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.tell_of_lost = sys.unraisablehook
        self.is_over = threading.Event()
        self.ear, self.bell = os.pipe()
        os.set_blocking(self.bell, False)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- a signal handler's signature
        """Raise once; a second Ctrl-C must not interrupt the cleanup."""
        if not self.is_stopped:
            self.is_stopped = True
            raise StoppedError(number)

    def hear_of_lost(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise the stop again shortly after a finalizer swallowed it; report other errors as before."""
        if not isinstance(lost.exc_value, StoppedError):
            self.tell_of_lost(lost)
            return
        self.is_stopped = False
        here = threading.main_thread().ident
        again = threading.Timer(SECONDS_OF_A_FINALIZER, signal.pthread_kill, [here, lost.exc_value.number])
        again.daemon = True
        again.start()

    def listen(self) -> None:
        while (number := os.read(self.ear, 1)[0]) not in SIGNALS:
            if not number:
                return
        if self.is_over.wait(SECONDS_OF_GRACE):
            return
        if self.is_stopped and self.is_over.wait(SECONDS_TO_TIDY_UP):
            return  # the main thread received it, and was only slow
        stop, words = StoppedError(number), last_words[::-1]
        logging.disable()  # nobody needs to know how our own processes end
        kill_started()  # the next line removes their unfinished files
        said = [say() for say in words]  # the last one is the outermost block's, which is shown
        show = SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
        say_error(f"{show}{said[-1] if said else stop}")
        os._exit(stop.exit_code)

    def close(self) -> None:
        self.is_over.set()
        os.write(self.bell, b"\0")
        self.thread.join()
        os.close(self.ear)
        os.close(self.bell)
