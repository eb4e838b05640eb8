"""Asks a separate process what only a library can say about a stranger's file: if the file kills it, nothing else dies.

The process starts with the first question and is replaced when it is lost.
"""

from __future__ import annotations

import atexit
import pickle
import subprocess
import threading
from functools import cache
from queue import LifoQueue
from types import TracebackType
from typing import Any, Self

from clip_retrieval.errors import ImageError
from clip_retrieval.process.subprocesses import describe_end, start_module

SECONDS_PER_QUESTION = 120.0
SECONDS_TO_DIE = 5.0
MODULE = "clip_retrieval.media.process"


class Helper:
    """A process that answers one question at a time; several threads may ask."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()
        self.is_late = False
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, function: str, *arguments: object) -> Any:
        """Return what a function of `media/process.py` returns.

        Raises ImageError with the function's reason, or `killed_reader` or `timeout` if two processes were lost.
        """
        with self.lock:
            for is_last in (False, True):  # one loss may have other causes, such as a lack of memory
                if self.is_closed:
                    raise ImageError("killed_reader", "the run was ended")
                try:
                    kind, value = self.try_once(function, arguments)
                except (EOFError, OSError, pickle.UnpicklingError) as error:
                    how = "" if self.process is None else describe_end(self.process, SECONDS_TO_DIE)
                    self.stop()
                    if is_last or self.is_closed:
                        reason = "timeout" if self.is_late else "killed_reader"
                        raise ImageError(reason, f"each process that opened it {how}") from error
                else:
                    break
        if kind == "failed":
            raise ImageError(*value)
        return value

    def try_once(self, function: str, arguments: tuple[object, ...]) -> tuple[str, Any]:
        self.process = process = self.process or start_module(MODULE)
        assert process.stdin is not None
        assert process.stdout is not None
        self.is_late = False
        alarm = threading.Timer(SECONDS_PER_QUESTION, self.give_up)
        alarm.daemon = True
        alarm.start()
        try:
            pickle.dump((function, arguments), process.stdin)
            process.stdin.flush()
            answer: tuple[str, Any] = pickle.load(process.stdout)
            return answer
        finally:
            alarm.cancel()

    def give_up(self) -> None:
        self.is_late = True
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        describe_end(process, SECONDS_TO_DIE)
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # data that were not sent
                continue

    def close(self) -> None:
        """End the process, also during a question."""
        self.is_closed = True
        if (process := self.process) is not None:
            process.kill()
        with self.lock:
            self.stop()


class Helpers:
    """As many processes as there are cores, each started when the others are busy; any number of threads may ask."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.all = [Helper() for _ in range(count)]
        self.free: LifoQueue[Helper] = LifoQueue()
        for helper in reversed(self.all):
            self.free.put(helper)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self.all:
            helper.close()

    def ask(self, function: str, *arguments: object) -> Any:
        """Return what `Helper.ask` returns."""
        helper = self.free.get()
        try:
            return helper.ask(function, *arguments)
        finally:
            self.free.put(helper)


@cache
def shared_helper() -> Helper:
    """Return the helper of this process, for pictures that are shown occasionally."""
    helper = Helper()
    atexit.register(helper.close)
    return helper
