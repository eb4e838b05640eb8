"""Batches to the sink, while reading, encoding and writing go on side by side.

    batches ──▶ pictures ──▶ encode ──┐
       └──────▶ captions ──▶ encode ──┴──▶ write, in order

Pictures are encoded batch by batch. Captions are collected over several batches, so that those of like length can be
encoded together. Each modality has a file of its own and is appended in row order: neither waits for the other.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Embeddings, Encoder
from clip_retrieval.inference.loader import BUFFERS
from clip_retrieval.inference.sink import Sink
from clip_retrieval.inference.stats import Stats
from clip_retrieval.inference.types import Batch, Row
from clip_retrieval.layout import Modality

CAPTIONS_AT_ONCE = 1024
WRITES_AHEAD = 8
SECONDS_FOR_THE_WRITER = 1.0  # when the run has failed: a large model may be in the middle of a batch


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


@dataclass(frozen=True)
class Write:
    """What is to be appended when it is encoded."""

    modality: Modality
    embeddings: Future[Embeddings]
    batches: Sequence[Batch]  # whose rows go with it


class Busy:
    """Measures for how long at least one of several threads works."""

    def __init__(self, stats: Stats) -> None:
        self.stats, self.lock = stats, threading.Lock()
        self.count, self.since = 0, time.perf_counter()  # since when it works, or rests

    def __enter__(self) -> None:
        with self.lock:
            self.count += 1
            if self.count == 1:
                self.since = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                now = time.perf_counter()
                self.stats.add("inference_duration", now - self.since)
                self.since = now

    def idle_seconds(self, start: float) -> float:
        """Return for how long nothing was worked at since `start`, a time at which nothing new was handed in."""
        with self.lock:
            return 0.0 if self.count else time.perf_counter() - max(start, self.since)


class Pipeline:
    """Encodes and writes the batches of one partition; leaving the block waits for all, and raises what went wrong."""

    def __init__(self, encoder: Encoder, sink: Sink, stats: Stats, advance: Callable[[int, int], None]) -> None:
        self.encoder, self.sink, self.stats, self.advance = encoder, sink, stats, advance
        self.busy = Busy(stats)
        # A GPU takes the next batch while it computes; a CPU has nothing to compute it with.
        self.threads = ThreadPoolExecutor(2 if encoder.info.device.startswith("cuda") else 1, "encode")
        self.under_way: deque[Future[Embeddings]] = deque()
        self.captions = Captions()
        self.captioned: list[Batch] = []  # whose rows wait for their captions
        self.writes: queue.Queue[Write | None] = queue.Queue(WRITES_AHEAD)
        self.error: BaseException | None = None
        self.writer = threading.Thread(target=self.write_all, name="write", daemon=True)
        self.asked = time.perf_counter()

    def __enter__(self) -> Self:
        self.writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.captions.row_count:
            self.encode_captions()
        if kind is not None:
            self.error = self.error or error  # the rest is not worth encoding
        self.threads.shutdown(wait=False, cancel_futures=kind is not None)
        self.writes.put(None)
        self.writer.join(None if kind is None else SECONDS_FOR_THE_WRITER)
        if kind is None and self.error is not None:
            raise self.error

    def add(self, batch: Batch) -> None:
        """Take a batch; its pixels may be overwritten when two more were taken."""
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
        self.submit("image", lambda: self.encoder.encode_images(pixels), len(batch.rows), batch.image_rows, [batch])
        while len(self.under_way) >= BUFFERS:
            self.under_way.popleft().exception()  # waits; the writer tells of errors

    def encode_captions(self) -> None:
        taken, batches = self.captions, self.captioned
        self.captions, self.captioned = Captions(), []
        places = np.array(taken.places, dtype=np.int64)
        self.submit("text", lambda: self.encoder.encode_texts(taken.texts), taken.row_count, places, batches)

    def submit(
        self,
        modality: Modality,
        encode: Callable[[], Embeddings],
        row_count: int,
        places: NDArray[np.int64],
        batches: Sequence[Batch],
    ) -> None:
        """Have something encoded, and then written; rows that lack the part become zero rows."""
        dim = self.encoder.info.dimension

        def run() -> Embeddings:
            with self.busy:
                if len(places) == row_count:
                    return encode() if row_count else np.zeros((0, dim), np.float32)
                rows = np.zeros((row_count, dim), np.float32)
                if len(places):
                    rows[places] = encode()
                return rows

        future = self.threads.submit(run)
        if modality == "image":
            self.under_way.append(future)
        self.writes.put(Write(modality, future, batches))

    def write_all(self) -> None:
        """Write in order until there is no more; after an error only take what comes, so that nobody waits."""
        while (write := self.writes.get()) is not None:
            if self.error is not None:
                continue
            try:
                self.write(write)
            except BaseException as error:  # a thread's error would be lost otherwise  # noqa: BLE001
                self.error = error

    def write(self, write: Write) -> None:
        embeddings = write.embeddings.result()
        if self.error is not None:
            return
        with self.stats.timing("write_duration"):
            self.sink.add_embeddings(write.modality, embeddings)
            for batch in write.batches:
                self.sink.add_rows(batch.rows)
                self.sink.add_failures(batch.failures)
        for batch in write.batches:
            self.stats.count_batch(batch)
            self.advance(len(batch.rows), batch.dropped_count)
