"""Bounded queues before worker threads: all waiting items are taken as one batch, without waiting for more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Generic, TypeVar

from clip_retrieval.search.cores import of_one_thread
from clip_retrieval.server.messages import Header, HttpError

T = TypeVar("T")
R = TypeVar("R")

RETRY_AFTER: tuple[Header, ...] = ((b"retry-after", b"1"),)


def too_busy() -> HttpError:
    return HttpError(HTTPStatus.TOO_MANY_REQUESTS, "too many requests are waiting; try again in a second", RETRY_AFTER)


@dataclass(frozen=True, kw_only=True)
class LaneSize:
    """How much work a lane holds: threads, items that may wait, items that a thread takes at once."""

    threads: int = 1
    most_waiting: int = 64
    most_at_once: int = 32


@dataclass(eq=False)
class Job(Generic[T, R]):
    """A waiting item and the future of its result; cancelled if the client is gone."""

    item: T
    future: asyncio.Future[R]
    since: float = field(default_factory=time.monotonic)


class Lane(Generic[T, R]):
    """Hands items to threads, and results back to the event loop that the items came from.

    `work` takes a batch and returns a result or an error for each item. If it raises, each item is tried alone, so only
    the bad one fails; no error ends a thread.
    """

    def __init__(self, name: str, work: Callable[[Sequence[T]], Sequence[R | Exception]], size: LaneSize) -> None:
        self.name, self.work, self.size = name, work, size
        self.waiting: deque[Job[T, R]] = deque()
        self.changed = threading.Condition()
        self.begun: dict[int, float] = {}  # thread -> when it took its batch
        self.is_closed = False
        self.waking: asyncio.AbstractEventLoop | None = None  # the loop in which `wake` is about to be called
        self.threads = [
            threading.Thread(target=self.run, name=f"{name}-{number}", daemon=True) for number in range(size.threads)
        ]
        for thread in self.threads:
            thread.start()

    async def do(self, item: T) -> R:
        """Return the result of an item. Raises HttpError 429 if too many wait, and the item's error from `work`."""
        if len(self.waiting) >= self.size.most_waiting or self.is_closed:
            raise too_busy()
        loop = asyncio.get_running_loop()
        job: Job[T, R] = Job(item, loop.create_future())
        self.waiting.append(job)
        if self.waking is not loop:
            self.waking = loop
            loop.call_soon(self.wake, loop, 0)
        try:
            return await job.future
        finally:
            del job  # its error refers to this frame: a cycle would keep the request's data

    def wake(self, loop: asyncio.AbstractEventLoop, before: int) -> None:
        """Let threads begin after a round of the loop without new items: a batch costs little more than one item."""
        count = len(self.waiting)
        if before < count < self.size.most_at_once:
            loop.call_soon(self.wake, loop, count)
            return
        self.waking = None
        with self.changed:
            self.changed.notify(-(-count // self.size.most_at_once))

    def run(self) -> None:
        with of_one_thread():  # each thread is one of several that search
            while (jobs := self.take()) is not None:
                results = self.results([job.item for job in jobs])
                self.begun.pop(threading.get_ident(), None)
                self.deliver(jobs, results)
                del jobs, results  # otherwise an error would keep the request's data until the next batch

    def take(self) -> list[Job[T, R]] | None:
        """Wait for work, and return all waiting jobs, up to a batch; None at the end. Cancelled jobs are dropped."""
        with self.changed:
            while True:
                while not self.waiting:
                    if self.is_closed:
                        return None
                    self.changed.wait()
                jobs = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.size.most_at_once))]
                if wanted := [job for job in jobs if not job.future.cancelled()]:
                    self.begun[threading.get_ident()] = time.monotonic()
                    return wanted

    def results(self, items: Sequence[T]) -> Sequence[R | Exception]:
        try:
            return self.work(items)
        except Exception as error:  # any error belongs to an answer  # noqa: BLE001
            if len(items) == 1:
                return [error]
        return [self.results([item])[0] for item in items]

    def deliver(self, jobs: Sequence[Job[T, R]], results: Sequence[R | Exception]) -> None:
        """Give the results back, with one call into each event loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Job[T, R], R | Exception]]] = {}
        for job, result in zip(jobs, results, strict=True):
            loops.setdefault(job.future.get_loop(), []).append((job, result))
        for loop, pairs in loops.items():
            try:
                loop.call_soon_threadsafe(settle_all, pairs)
            except RuntimeError:  # the loop was closed: the server has ended
                continue

    def seconds_behind(self) -> float:
        """Return the age of the oldest batch in progress, or of the oldest waiting item."""
        now = time.monotonic()
        first = [job.since for job in list(self.waiting)[:1]]
        return max((now - begun for begun in [*self.begun.values(), *first]), default=0.0)

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self.threads)

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()


def settle_all(pairs: Sequence[tuple[Job[T, R], R | Exception]]) -> None:
    for job, result in pairs:
        if job.future.done():
            continue  # cancelled
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)


def one_by_one(work: Callable[[T], R]) -> Callable[[Sequence[T]], Sequence[R | Exception]]:
    """Return the work of a lane whose items have nothing in common."""

    def run(items: Sequence[T]) -> Sequence[R | Exception]:
        return [attempt(work, item) for item in items]

    return run


def attempt(work: Callable[[T], R], item: T) -> R | Exception:
    """Return the result of an item, or its error, in a separate frame, so tracebacks do not hold the list of errors."""
    try:
        return work(item)
    except Exception as error:  # belongs to the answer of its item  # noqa: BLE001
        return error
