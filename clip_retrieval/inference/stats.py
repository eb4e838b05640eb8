"""Where the time of a partition went, and what became of its samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from clip_retrieval.inference.types import Batch

T = TypeVar("T")


@dataclass
class Stats:
    """Counts and seconds of one partition, or of several added up."""

    sample_count: int = 0  # rows written
    skipped_count: int = 0  # samples left out
    image_count: int = 0
    text_count: int = 0
    truncated_captions: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # part:reason -> how often
    start_time: float = field(default_factory=time.time)  # seconds since 1970
    end_time: float = 0.0
    read_duration: float = 0.0  # seconds that the model waited for samples
    inference_duration: float = 0.0
    write_duration: float = 0.0
    total_duration: float = 0.0

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on, and count the time that each is waited for."""
        iterator = iter(items)
        while True:
            with self.timing("read_duration"):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def count_batch(self, batch: Batch) -> None:
        self.sample_count += len(batch.rows)
        self.skipped_count += batch.dropped_count
        for failure in batch.failures:
            self.reasons[f"{failure.part}:{failure.reason}"] += 1
        self.image_count += sum(row.has_image for row in batch.rows)
        self.text_count += sum(row.caption is not None for row in batch.rows)

    def finish(self) -> None:
        self.end_time = time.time()
        self.total_duration = self.end_time - self.start_time

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"reasons": dict(self.reasons)}


def add_up(parts: Iterable[Mapping[str, Any]]) -> Stats:
    """Return the sums over partitions; start and end are the first and the last."""
    total = Stats()
    starts, ends = [], []
    for part in parts:
        total.reasons.update(part["reasons"])
        starts.append(part["start_time"])
        ends.append(part["end_time"])
        for name in ("sample_count", "skipped_count", "image_count", "text_count", "truncated_captions"):
            setattr(total, name, getattr(total, name) + part[name])
        for name in ("read_duration", "inference_duration", "write_duration", "total_duration"):
            setattr(total, name, getattr(total, name) + part[name])
    total.start_time, total.end_time = min(starts, default=0.0), max(ends, default=0.0)
    return total
