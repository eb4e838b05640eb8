"""Where the time of a partition went, and what became of its samples. May be fed from several threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clip_retrieval.inference.types import Batch

T = TypeVar("T")

COUNTS = ("sample_count", "deleted_count", "skipped_count", "image_count", "text_count", "truncated_captions")
DURATIONS = (
    "read_duration", "inference_duration", "write_duration", "total_duration",
    "source_duration", "reader_read_duration", "reader_decode_duration", "reader_duration",
)  # fmt: skip
END = object()


@dataclass(kw_only=True)
class Stats:
    """Counts and seconds of one partition, or of several added up. Stages overlap: do not add up their seconds.

    `timing`, `sourcing`, `count_batch` and `count_truncated` may be called from any thread.
    """

    run: str = ""  # id of the run that made the partition
    reader_count: int = 1  # reader processes; 1 if the worker itself prepares samples
    sample_count: int = 0  # rows written
    deleted_count: int = 0  # rows that an update emptied; they count as rows, too
    skipped_count: int = 0  # samples left out
    image_count: int = 0
    text_count: int = 0
    truncated_captions: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # part:reason -> how often
    warnings: Counter[str] = field(default_factory=Counter)  # decoder warnings by reason; the pictures are still used
    start_time: float = field(default_factory=time.time)  # seconds since 1970
    end_time: float = 0.0
    read_duration: float = 0.0  # seconds that the encoder waited for samples
    inference_duration: float = 0.0
    write_duration: float = 0.0
    total_duration: float = 0.0
    source_duration: float = 0.0  # seconds that the feeder waited for the source: listings, tars, streams
    reader_read_duration: float = 0.0  # reader-seconds spent reading bytes
    reader_decode_duration: float = 0.0  # reader-seconds spent decoding and resizing
    reader_duration: float = 0.0  # all reader-seconds: total_duration x reader_count

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.started = time.perf_counter()  # because the wall clock may be changed during a run

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to one of DURATIONS."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to one of DURATIONS."""
        with self.lock:
            setattr(self, name, getattr(self, name) + seconds)

    def sourcing(self, items: Iterable[T]) -> Iterator[T]:
        """Pass the source's items on, and count the time that each takes."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator, END)
            finally:
                self.add("source_duration", time.perf_counter() - start)
            if item is END:
                return
            yield item  # type: ignore[misc]  # END alone is no T

    def count_batch(self, batch: Batch) -> None:
        with self.lock:
            self.sample_count += len(batch.rows)
            self.skipped_count += batch.dropped_count
            for failure in batch.failures:
                self.reasons[f"{failure.part}:{failure.reason}"] += 1
            self.image_count += sum(row.has_image for row in batch.rows)
            self.text_count += sum(row.caption is not None for row in batch.rows)
            self.reader_read_duration += batch.read_seconds
            self.reader_decode_duration += batch.decode_seconds
            self.warnings.update(batch.warnings)

    def count_truncated(self, count: int) -> None:
        """Add captions that were longer than the model takes."""
        with self.lock:
            self.truncated_captions += count

    @property
    def rate(self) -> float:
        """Samples a second, including those left out; for several workers, the mean of each."""
        return (self.sample_count + self.skipped_count) / self.total_duration if self.total_duration else 0.0

    def finish(self) -> None:
        """Set the end, and the figures that depend on it, to now."""
        with self.lock:
            self.end_time = time.time()
            self.total_duration = time.perf_counter() - self.started
            self.reader_duration = self.total_duration * max(1, self.reader_count)

    def so_far(self) -> dict[str, Any]:
        """Return the figures of a partition that is still being made."""
        self.finish()
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return upstream's fields, with the values that their names say, and ours."""
        with self.lock:
            figures = {name: getattr(self, name) for name in ("start_time", "end_time", *DURATIONS, *COUNTS)}
            counts = {"reasons": dict(self.reasons), "warnings": dict(self.warnings)}
            return {**figures, "reader_count": self.reader_count, "rate": self.rate, "run": self.run, **counts}


class Sums:
    """Sums over partitions; start and end are the first and the last, readers the most of any."""

    def __init__(self) -> None:
        self.total = Stats(start_time=0.0)

    def add(self, part: Mapping[str, Any]) -> None:
        """Add the stats of a partition, or sums over others."""
        total = self.total
        total.reasons.update(part["reasons"])
        total.warnings.update(part.get("warnings", {}))
        total.start_time = min(total.start_time or part["start_time"], part["start_time"])
        total.end_time = max(total.end_time, part["end_time"])
        total.reader_count = max(total.reader_count, part.get("reader_count", 1))
        for name in (*COUNTS, *DURATIONS):
            setattr(total, name, getattr(total, name) + part.get(name, 0))


def add_up(parts: Iterable[Mapping[str, Any]]) -> Stats:
    """Return the sums over partitions."""
    sums = Sums()
    for part in parts:
        sums.add(part)
    return sums.total
