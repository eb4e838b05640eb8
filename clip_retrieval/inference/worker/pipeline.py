"""Batches to the sink, while reading, encoding and writing go on in parallel.

    batches ──▶ pictures ──▶ encode ──┐
       └──────▶ captions ──▶ encode ──┴──▶ write, in order

Pictures are encoded batch by batch. Captions are collected over several batches, so that those of similar length
can be encoded together. Each modality has its own file and is appended in row order: neither waits for the other.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Embeddings, Encoder, Pixels
from clip_retrieval.inference.output.sink import Sink
from clip_retrieval.inference.readers.loader import BUFFERS
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.types import Batch, Row
from clip_retrieval.layout import Modality

CAPTIONS_AT_ONCE = 1024
WRITES_AHEAD = 8
SECONDS_TO_END = 1.0  # when the run has failed: a large model may be in the middle of a batch


@dataclass
class Captions:
    """The captions of some rows, until there are enough of them."""

    texts: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # rows that have one
    row_count: int = 0

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.caption is not None:
                self.texts.append(row.caption)
                self.places.append(self.row_count)
            self.row_count += 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be encoded and appended; rows without the part become zero rows."""

    modality: Modality
    start: Callable[[], Callable[[], Embeddings]]
    row_count: int
    places: NDArray[np.int64]  # rows that have the part
    batches: Sequence[Batch]  # batches whose rows are written together with these embeddings
    result: Future[Embeddings] = field(default_factory=Future)

    def spread(self, embeddings: Embeddings) -> Embeddings:
        if len(self.places) == self.row_count:
            return embeddings
        rows = np.zeros((self.row_count, embeddings.shape[1]), np.float32)
        rows[self.places] = embeddings
        return rows


class Busy:
    """Measures for how long at least one job is under way."""

    def __init__(self, stats: Stats) -> None:
        self.stats, self.lock = stats, threading.Lock()
        self.count, self.since = 0, time.perf_counter()  # the last change

    def begin(self) -> None:
        self.change(1)

    def end(self) -> None:
        self.change(-1)

    def change(self, step: int) -> None:
        """Count the work since the last change: while jobs overlap, their number may never reach 0."""
        with self.lock:
            now = time.perf_counter()
            if self.count:
                self.stats.add("inference_duration", now - self.since)
            self.count, self.since = self.count + step, now

    def idle_seconds(self, start: float) -> float:
        """Return for how long there was no work since `start`, during which no new work came."""
        with self.lock:
            return 0.0 if self.count else time.perf_counter() - max(start, self.since)


class Pipeline:
    """Encodes and writes the batches of one partition; leaving the block waits for all, and raises what went wrong."""

    def __init__(self, encoder: Encoder, sink: Sink, stats: Stats, advance: Callable[[int, int], None]) -> None:
        self.encoder, self.sink, self.stats, self.advance = encoder, sink, stats, advance
        self.busy = Busy(stats)
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.under_way: deque[Future[Embeddings]] = deque()
        self.captions = Captions()
        self.captioned: list[Batch] = []  # batches whose rows wait for their captions
        self.writes: queue.Queue[Job | None] = queue.Queue(WRITES_AHEAD)
        self.error: BaseException | None = None
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.encode_all, self.write_all)]
        self.asked = time.perf_counter()

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and (self.captions.row_count or self.captioned):  # batches without rows have failures
            self.encode_captions()
        if kind is not None:
            self.error = self.error or error  # the rest is not worth encoding
        self.jobs.put(None)
        self.writes.put(None)
        for thread in self.threads:
            thread.join(None if kind is None else SECONDS_TO_END)
        if kind is None and self.error is not None:
            raise self.error

    def add(self, batch: Batch) -> None:
        """Take a batch; its pixels may be overwritten when two more have been taken."""
        self.stats.add("read_duration", self.busy.idle_seconds(self.asked))
        if self.error is not None:
            raise self.error
        if "image" in self.sink.writers:
            self.encode_pictures(batch)
        if "text" in self.sink.writers:
            self.captions.add(batch.rows)
            if "image" not in self.sink.writers:
                self.captioned.append(batch)
            if len(self.captions.texts) >= CAPTIONS_AT_ONCE or self.captions.row_count >= 4 * CAPTIONS_AT_ONCE:
                self.encode_captions()
        self.asked = time.perf_counter()

    def encode_pictures(self, batch: Batch) -> None:
        pixels = batch.pixels
        assert pixels is not None
        job = Job(
            modality="image",
            start=lambda: self.start_images(pixels),
            row_count=len(batch.rows),
            places=batch.image_rows,
            batches=[batch],
        )
        self.under_way.append(job.result)
        self.submit(job)
        while len(self.under_way) >= BUFFERS:
            self.under_way.popleft().exception()  # waits; the writer reports errors

    def encode_captions(self) -> None:
        taken, batches = self.captions, self.captioned
        self.captions, self.captioned = Captions(), []
        places = np.array(taken.places, dtype=np.int64)
        self.submit(
            Job(
                modality="text",
                start=lambda: self.start_texts(taken.texts),
                row_count=taken.row_count,
                places=places,
                batches=batches,
            )
        )

    def start_images(self, pixels: Pixels) -> Callable[[], Embeddings]:
        return self.encoder.start_images(pixels) if len(pixels) else self.nothing

    def start_texts(self, texts: Sequence[str]) -> Callable[[], Embeddings]:
        if not texts:
            return self.nothing
        found = self.encoder.embed_texts(texts)
        self.stats.count_truncated(found.truncated_count)
        return lambda: found.rows

    def nothing(self) -> Embeddings:
        return np.zeros((0, self.encoder.info.dimension), np.float32)

    def submit(self, job: Job) -> None:
        self.jobs.put(job)
        self.writes.put(job)

    def encode_all(self) -> None:
        """Encode in order until there is no more; the next job, if there is one, begins before this waits for one."""
        begun: tuple[Job, Callable[[], Embeddings]] | None = None
        is_over = False
        while begun is not None or not is_over:
            job = None
            if not is_over and (begun is None or not self.jobs.empty()):
                job = self.jobs.get()
                is_over = job is None
            wait = None if job is None else self.begin(job)
            if begun is not None:
                self.finish(*begun)
            begun = (job, wait) if job is not None and wait is not None else None

    def begin(self, job: Job) -> Callable[[], Embeddings] | None:
        self.busy.begin()
        try:
            if self.error is not None:
                raise self.error
            return job.start()
        except BaseException as error:  # a thread's error would be lost otherwise  # noqa: BLE001
            self.busy.end()
            job.result.set_exception(error)
            return None

    def finish(self, job: Job, wait: Callable[[], Embeddings]) -> None:
        try:
            rows = job.spread(wait())
        except BaseException as error:  # as above  # noqa: BLE001
            job.result.set_exception(error)
        else:
            job.result.set_result(rows)
        finally:
            self.busy.end()

    def write_all(self) -> None:
        """Write in order until there is no more; after an error only empty the queue, so that nothing waits."""
        while (job := self.writes.get()) is not None:
            if self.error is not None:
                continue
            try:
                self.write(job)
            except BaseException as error:  # as above  # noqa: BLE001
                self.error = error

    def write(self, job: Job) -> None:
        embeddings = job.result.result()
        if self.error is not None:
            return
        with self.stats.timing("write_duration"):
            self.sink.add_embeddings(job.modality, embeddings)
            for batch in job.batches:
                self.sink.add_rows(batch.rows)
                self.sink.add_failures(batch.failures)
        for batch in job.batches:
            self.stats.count_batch(batch)
            self.advance(len(batch.rows), batch.dropped_count)
