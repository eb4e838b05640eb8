from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from clip_retrieval.encoder.base import Embeddings, Pixels, TextEmbeddings
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError, StorageError
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.types import Batch, Row
from clip_retrieval.inference.worker.pipeline import CAPTIONS_AT_ONCE, Busy, Job, Pipeline
from clip_retrieval.sources.types import Failure

SECONDS = 60  # that only a hang takes


class SlowEncoder:
    """Gives the number in a picture's first value, or of a caption."""

    def __init__(self, *, waits: bool = False) -> None:
        self.info = load_encoder("hash:1").info
        self.waits = waits  # with its first batch for the second one
        self.batch_sizes: dict[str, list[int]] = {"image": [], "text": []}
        self.second = threading.Event()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # of the pipeline that it works for
        self.refuses_texts = False

    def encode_images(self, pixels: Pixels) -> Embeddings:
        raise NotImplementedError

    def start_images(self, pixels: Pixels) -> Callable[[], Embeddings]:
        """Be another GPU: the first batch is done when another one was begun."""
        taken = pixels[:, 0, 0, :1].astype(np.float32)
        self.batch_sizes["image"].append(len(pixels))
        is_first = len(self.batch_sizes["image"]) == 1
        if not is_first:
            self.second.set()
        end = time.monotonic() + SECONDS
        while is_first and self.waits and self.jobs.empty() and time.monotonic() < end:
            time.sleep(0.001)  # until the next batch is there: else nothing could be begun beside this one

        def wait() -> Embeddings:
            assert not (is_first and self.waits) or self.second.wait(SECONDS)
            return taken

        return wait

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        """Count texts of more than one character as cut."""
        if self.refuses_texts:
            raise EncoderError("no numbers")
        self.batch_sizes["text"].append(len(texts))
        rows = np.array([[float(text)] for text in texts], dtype=np.float32)
        return TextEmbeddings(rows, sum(len(text) > 1 for text in texts))

    def encode_tokens(self, tokens: Any) -> Embeddings:
        raise NotImplementedError


class ListSink:
    """Keeps what it is given; `broken` raises instead."""

    def __init__(self, *modalities: str, broken: bool = False) -> None:
        self.writers: dict[str, list[Embeddings]] = {modality: [] for modality in modalities}
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.broken = broken

    def add_embeddings(self, modality: str, rows: Embeddings) -> None:
        if self.broken:
            raise StorageError("the disk is full")
        self.writers[modality].append(rows)

    def add_rows(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def add_failures(self, failures: Sequence[Failure]) -> None:
        self.failures += failures

    def column(self, modality: str) -> list[float]:
        return [float(value) for rows in self.writers[modality] for value in rows[:, 0]]


def make_batches(count: int, size: int) -> list[Batch]:
    """Return batches whose every third row has no picture and every fifth no caption; row r is number r % 250 + 1."""
    batches = []
    for start in range(0, count, size):
        numbers = range(start, min(count, start + size))
        rows = [
            Row(
                key=str(i),
                image_path=str(i),
                caption=None if i % 5 == 0 else str(i % 250 + 1),
                metadata=None,
                origin=None,
                has_image=i % 3 > 0,
            )
            for i in numbers
        ]
        pixels = np.array([i % 250 + 1 for i in numbers if i % 3], dtype=np.uint8)
        failures = [Failure(str(i), "", "image", "decode", "") for i in numbers if i % 3 == 0]
        batches.append(
            Batch(
                rows=rows,
                pixels=np.broadcast_to(pixels[:, None, None, None], (len(pixels), 1, 1, 3)),
                failures=failures,
                dropped_count=0,
            )
        )
    return batches


def run(encoder: SlowEncoder, sink: ListSink, batches: Sequence[Batch]) -> tuple[Stats, int]:
    stats, advanced = Stats(), []
    with Pipeline(encoder, sink, stats, lambda *counts: advanced.append(counts)) as pipeline:  # type: ignore[arg-type]
        encoder.jobs = pipeline.jobs
        for batch in batches:
            pipeline.add(batch)
    return stats, sum(rows for rows, _ in advanced)


@pytest.mark.parametrize("modalities", [("image", "text"), ("image",), ("text",)])
@pytest.mark.parametrize("waits", [False, True])
def test_rows_come_out_in_order_and_what_lacks_a_part_is_zero(modalities: tuple[str, ...], waits: bool) -> None:
    count = 3 * CAPTIONS_AT_ONCE
    encoder, sink = SlowEncoder(waits=waits), ListSink(*modalities)
    stats, advanced = run(encoder, sink, make_batches(count, 97))

    numbers = [i % 250 + 1 for i in range(count)]
    if "image" in modalities:
        assert sink.column("image") == [n if i % 3 else 0 for i, n in enumerate(numbers)]
    if "text" in modalities:
        assert sink.column("text") == [n if i % 5 else 0 for i, n in enumerate(numbers)]
        assert stats.truncated_captions == sum(n > 9 for i, n in enumerate(numbers) if i % 5)
    assert [row.key for row in sink.rows] == [str(i) for i in range(count)]
    assert len(sink.failures) == count // 3
    assert (stats.sample_count, advanced) == (count, count)


def test_captions_are_encoded_in_larger_batches_than_pictures() -> None:
    encoder = SlowEncoder()
    run(encoder, ListSink("image", "text"), make_batches(4000, 100))
    assert max(encoder.batch_sizes["image"]) < 100
    assert min(encoder.batch_sizes["text"][:-1]) >= CAPTIONS_AT_ONCE


def test_the_next_batch_is_begun_while_one_is_under_way() -> None:
    encoder = SlowEncoder(waits=True)
    run(encoder, ListSink("image"), make_batches(400, 100))
    assert encoder.second.is_set()


def test_an_error_of_the_disk_ends_the_run() -> None:
    with pytest.raises(StorageError, match="the disk is full"):
        run(SlowEncoder(), ListSink("image", "text", broken=True), make_batches(10_000, 10))


def test_an_error_of_the_model_ends_the_run() -> None:
    encoder = SlowEncoder()
    encoder.refuses_texts = True
    with pytest.raises(EncoderError, match="no numbers"):
        run(encoder, ListSink("image", "text"), make_batches(10_000, 10))


def test_an_error_of_the_source_ends_the_threads() -> None:
    pipeline = Pipeline(SlowEncoder(), ListSink("image"), Stats(), lambda *_: None)  # type: ignore[arg-type]

    def go() -> None:
        with pipeline:
            pipeline.add(make_batches(10, 10)[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go()
    assert not any(thread.is_alive() for thread in pipeline.threads)


def test_pixels_may_be_used_again_two_batches_later() -> None:
    """The loader has three buffers in turn; a batch that were still waiting would see the pixels of another."""
    sink, buffers = ListSink("image"), [np.zeros((10, 1, 1, 3), np.uint8) for _ in range(3)]
    with Pipeline(SlowEncoder(), sink, Stats(), lambda *_: None) as pipeline:  # type: ignore[arg-type]
        for i in range(200):
            pixels = buffers[i % 3]
            pixels[:] = i
            pipeline.add(
                Batch(
                    rows=[Row(key="", image_path="", caption=None, metadata=None, origin=None, has_image=True)] * 10,
                    pixels=pixels,
                    failures=[],
                    dropped_count=0,
                )
            )
    assert sink.column("image") == [i for i in range(200) for _ in range(10)]


def test_waiting_is_what_the_encoder_does_not_work() -> None:
    stats = Stats()
    busy = Busy(stats)
    busy.begin()
    assert busy.idle_seconds(busy.since - 100) == 0
    busy.end()
    end = busy.since
    assert busy.idle_seconds(end - 100) < 50  # what lies before the end of the work does not count
    assert busy.idle_seconds(0.0) < 50
    assert stats.inference_duration > 0


def test_work_is_counted_while_jobs_overlap() -> None:
    """Their number never comes to 0 where the encoder is the limit, and who watches wants to know before the end."""
    stats = Stats()
    busy = Busy(stats)
    busy.begin()
    for _ in range(3):
        before = stats.inference_duration
        busy.begin()
        busy.end()
        assert stats.inference_duration > before
    assert busy.count == 1
