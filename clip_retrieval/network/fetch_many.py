"""Many downloads at once, results in the order of the requests: bounded in number, for each host, and in bytes."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from clip_retrieval.network.connections import FetchError

LOOK_AHEAD = 64  # requests for each thread that may wait, or be done before their turn
MOST_HELD = 256 << 20  # bytes of finished downloads that wait for their turn
T = TypeVar("T")


@dataclass
class Job(Generic[T]):
    """One item, its url, and what came of it; without a url it is done from the start."""

    item: T
    url: str | None
    host: str
    result: bytes | BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class InOrder(Generic[T]):
    """Calls `fetch` for the urls of items, in threads. One pass through one list of items."""

    def __init__(self, fetch: Callable[[str], bytes], concurrency: int, per_host: int) -> None:
        self.fetch = fetch
        self.per_host = per_host
        self.concurrency = concurrency
        self.most = LOOK_AHEAD * concurrency
        self.window: deque[Job[T]] = deque()  # not yet given out, in order
        self.waiting: dict[str, deque[Job[T]]] = {}  # by host: not yet taken by a thread
        self.active: Counter[str] = Counter()
        self.held = 0
        self.is_closed = False
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def results(self, items: Iterable[tuple[T, str | None]]) -> Iterator[tuple[T, bytes | FetchError | None]]:
        """Yield (item, bytes, or why there are none; None without a url) in the order of the items."""
        try:
            for item, url in items:
                self.add(item, url)
                while self.window and (self.window[0].done.is_set() or len(self.window) > self.most):
                    yield self.take_first()
            while self.window:
                yield self.take_first()
        finally:
            with self.changed:
                self.is_closed = True
                self.changed.notify_all()

    def add(self, item: T, url: str | None) -> None:
        job = Job(item, url, host_of(url))
        if url is None:
            job.done.set()
        elif len(self.threads) < self.concurrency:
            self.threads.append(threading.Thread(target=self.work, daemon=True))
            self.threads[-1].start()
        with self.changed:
            self.window.append(job)
            if url is not None:
                self.waiting.setdefault(job.host, deque()).append(job)
                self.changed.notify()

    def take_first(self) -> tuple[T, bytes | FetchError | None]:
        job = self.window[0]
        job.done.wait()
        with self.changed:
            self.window.popleft()
            self.held -= len(job.result) if isinstance(job.result, bytes) else 0
            self.changed.notify_all()  # another job is first now, and may go beyond MOST_HELD
        if isinstance(job.result, BaseException) and not isinstance(job.result, FetchError):
            raise job.result
        return job.item, job.result

    def work(self) -> None:
        while (job := self.next_job()) is not None:
            assert job.url is not None
            try:
                job.result = self.fetch(job.url)
            except BaseException as error:  # given to whoever waits for it  # noqa: BLE001
                job.result = error
            with self.changed:
                self.active[job.host] -= 1
                if not self.active[job.host]:
                    del self.active[job.host]  # there may be millions of hosts
                self.held += len(job.result) if isinstance(job.result, bytes) else 0
                self.changed.notify_all()
            job.done.set()

    def next_job(self) -> Job[T] | None:
        """Wait for a job whose host has room; None when there will be no more."""
        with self.changed:
            while not self.is_closed:
                for host, jobs in self.waiting.items():
                    has_room = self.held < MOST_HELD or jobs[0] is self.window[0]
                    if has_room and self.active[host] < self.per_host:
                        self.active[host] += 1
                        return self.take_from(host)
                self.changed.wait()
        return None

    def take_from(self, host: str) -> Job[T]:
        job = self.waiting[host].popleft()
        if not self.waiting[host]:
            del self.waiting[host]
        return job


def host_of(url: str | None) -> str:
    try:
        return (urlsplit(url or "").hostname or "").lower()
    except ValueError:
        return ""
