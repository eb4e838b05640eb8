"""Concurrent downloads with results in request order; bounded in number, per host, and in bytes held."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from clip_retrieval.network.connections import FetchError

LOOK_AHEAD = 64  # requests per thread that may be queued or finished ahead of their turn
MOST_HELD = 256 << 20  # bytes of finished downloads ahead of their turn
T = TypeVar("T")


@dataclass
class Download(Generic[T]):
    """One item, its url and the result; without a url it counts as done."""

    item: T
    url: str | None
    host: str
    result: bytes | BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class InOrder(Generic[T]):
    """Fetches the urls of items in threads; to be used for one list of items."""

    def __init__(self, fetch: Callable[[str], bytes], concurrency: int, per_host: int) -> None:
        self.fetch = fetch
        self.per_host = per_host
        self.concurrency = concurrency
        self.most = LOOK_AHEAD * concurrency
        self.window: deque[Download[T]] = deque()  # not yielded yet, in order
        self.waiting: dict[str, deque[Download[T]]] = {}  # not started yet, by host
        self.active: Counter[str] = Counter()
        self.held = 0
        self.is_closed = False
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def results(self, items: Iterable[tuple[T, str | None]]) -> Iterator[tuple[T, bytes | FetchError | None]]:
        """Yield (item, result) in the order of the items; the result is bytes, a FetchError, or None without a url."""
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
        download = Download(item, url, host_of(url))
        if url is None:
            download.done.set()
        elif len(self.threads) < self.concurrency:
            self.threads.append(threading.Thread(target=self.work, daemon=True))
            self.threads[-1].start()
        with self.changed:
            self.window.append(download)
            if url is not None:
                self.waiting.setdefault(download.host, deque()).append(download)
                self.changed.notify()

    def take_first(self) -> tuple[T, bytes | FetchError | None]:
        download = self.window[0]
        download.done.wait()
        with self.changed:
            self.window.popleft()
            self.held -= len(download.result) if isinstance(download.result, bytes) else 0
            self.changed.notify_all()  # the download that is first now may exceed MOST_HELD
        if isinstance(download.result, BaseException) and not isinstance(download.result, FetchError):
            raise download.result
        return download.item, download.result

    def work(self) -> None:
        while (download := self.next_download()) is not None:
            assert download.url is not None
            try:
                download.result = self.fetch(download.url)
            except BaseException as error:  # raised in the thread that yields the results  # noqa: BLE001
                download.result = error
            with self.changed:
                self.active[download.host] -= 1
                if not self.active[download.host]:
                    del self.active[download.host]  # tables name millions of hosts
                self.held += len(download.result) if isinstance(download.result, bytes) else 0
                self.changed.notify_all()
            download.done.set()

    def next_download(self) -> Download[T] | None:
        """Wait for a download whose host is below its limit; None once the pass is over."""
        with self.changed:
            while not self.is_closed:
                for host, downloads in self.waiting.items():
                    has_room = self.held < MOST_HELD or downloads[0] is self.window[0]
                    if has_room and self.active[host] < self.per_host:
                        self.active[host] += 1
                        return self.take_from(host)
                self.changed.wait()
        return None

    def take_from(self, host: str) -> Download[T]:
        download = self.waiting[host].popleft()
        if not self.waiting[host]:
            del self.waiting[host]
        return download


def host_of(url: str | None) -> str:
    try:
        return (urlsplit(url or "").hostname or "").lower()
    except ValueError:
        return ""
