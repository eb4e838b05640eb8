"""What a run has done so far: workers report it as news, from threads and processes; displays look at it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from clip_retrieval.inference.telemetry.diagnosis import Diagnosis, Machine, Shares, diagnose, shares_of
from clip_retrieval.inference.telemetry.stats import Stats, add_up
from clip_retrieval.process.resources import count_cores

SECONDS_OF_WINDOW = 30.0  # rate and shares are over this time
SECONDS_BETWEEN_MOMENTS = 1.0
SECONDS_TO_SETTLE = 20.0  # the same part has to be the limit for this long before it is shown


class Report(Protocol):
    """What a worker reports while it works: `begin` a partition, `advance` for each batch, `end` it."""

    estimate_total: Callable[[], int | None]

    def begin(self, stats: Stats) -> None: ...

    def advance(self, rows: int, dropped: int) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class News:
    """What a worker did since its last news, and the figures so far of the partition that it makes."""

    rows: int = 0
    dropped: int = 0
    part: Mapping[str, Any] | None = None  # Stats as json
    total: int | None = None  # samples that this worker has to do, as far as is known now
    is_end: bool = False  # the partition is whole


class Teller:
    """A worker's report, as news for a listener."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        self.estimate_total: Callable[[], int | None] = lambda: None
        self.tell = tell
        self.stats: Stats | None = None

    def begin(self, stats: Stats) -> None:
        self.stats = stats
        self.advance(0, 0)

    def advance(self, rows: int, dropped: int) -> None:
        self.tell(News(rows=rows, dropped=dropped, part=self.figures(), total=self.estimate_total()))

    def end(self) -> None:
        self.tell(News(part=self.figures(), total=self.estimate_total(), is_end=True))
        self.stats = None

    def figures(self) -> dict[str, Any] | None:
        return None if self.stats is None else self.stats.so_far()


@dataclass(frozen=True, kw_only=True)
class View:
    """A run at one moment. Rate and shares are over the last half minute."""

    rows: int
    dropped: int
    total: int | None  # samples, about
    rate: float  # samples a second, of all workers
    shares: Shares
    settled: Diagnosis | None  # the limit, once it has stayed the same for a while
    stats: Stats  # sums of this run
    partitions_done: int
    partition_count: int

    @property
    def done(self) -> int:
        return self.rows + self.dropped

    @property
    def seconds_left(self) -> float | None:
        return max(0, self.total - self.done) / self.rate if self.total is not None and self.rate else None


@dataclass(frozen=True)
class Moment:
    """Sums at one time; two of them make a window."""

    time: float
    done: int
    stats: Stats


class Live:
    """Adds up the news of all workers. Safe to use from any thread."""

    def __init__(self, partition_count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.partition_count, self.clock = partition_count, clock
        self.lock = threading.Lock()
        self.rows = self.dropped = self.partitions_done = 0
        self.finished = Stats()  # the partitions that are whole
        self.finished.start_time = 0.0
        self.under_way: dict[int, Mapping[str, Any]] = {}  # worker -> figures of its partition
        self.reader_counts: dict[int, int] = {}
        self.totals: dict[int, int] = {}
        self.window: deque[Moment] = deque()
        self.verdict: Diagnosis | None = None
        self.verdict_since = 0.0

    def teller(self, worker: int = 0) -> Teller:
        """Return the report of a worker in this process."""
        return Teller(lambda news: self.hear(worker, news))

    def hear(self, worker: int, news: News) -> None:
        with self.lock:
            self.rows, self.dropped = self.rows + news.rows, self.dropped + news.dropped
            if news.total is not None:
                self.totals[worker] = news.total
            if news.part is not None:
                self.reader_counts[worker] = news.part["reader_count"]
                self.under_way[worker] = news.part
            if news.is_end:
                self.partitions_done += 1
                self.finished = add_up(
                    part for part in (self.finished.to_json(), self.under_way.pop(worker, None)) if part
                )
            self.remember()

    def remember(self) -> None:
        """Keep this moment for the window, and watch whether one part stays the limit."""
        now = self.clock()
        if self.window and now - self.window[-1].time < SECONDS_BETWEEN_MOMENTS:
            return
        self.window.append(Moment(now, self.rows + self.dropped, self.sums()))
        while len(self.window) > 2 and now - self.window[1].time >= SECONDS_OF_WINDOW:
            self.window.popleft()
        verdict = diagnose(self.shares(), self.machine())
        if self.verdict is None or verdict.limit != self.verdict.limit:
            self.verdict_since = now
        self.verdict = verdict

    def sums(self) -> Stats:
        return add_up([self.finished.to_json(), *self.under_way.values()])

    def shares(self) -> Shares:
        return shares_of(self.window[-1].stats, self.window[0].stats) if self.window else Shares()

    def machine(self) -> Machine:
        return Machine(readers=sum(self.reader_counts.values()), cores=count_cores())

    def look(self) -> View:
        """Return the run as it is now; while there is no news, the rate falls."""
        with self.lock:
            now, done = self.clock(), self.rows + self.dropped
            since = self.window[0] if self.window else Moment(now, done, Stats())
            has_settled = now - self.verdict_since >= SECONDS_TO_SETTLE
            is_known = self.verdict is not None and self.verdict.limit not in ("unknown", "none")
            return View(
                rows=self.rows,
                dropped=self.dropped,
                total=sum(self.totals.values()) if self.totals else None,
                rate=(done - since.done) / (now - since.time) if now > since.time else 0.0,
                shares=self.shares(),
                settled=self.verdict if has_settled and is_known else None,
                stats=self.sums(),
                partitions_done=self.partitions_done,
                partition_count=self.partition_count,
            )


@contextmanager
def repeating(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call every so many seconds, while the block runs, from a separate thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
