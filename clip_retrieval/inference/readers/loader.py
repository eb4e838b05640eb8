"""Source to batches: chunks of samples go to reader processes and come back as rows, in input order.

    source ── chunks ──▶ reader processes ── rows, shared pixels ──▶ batches

A bounded number of slots of shared memory is all that can be under way. Slots are given out in input order, so
the chunk that is waited for always has one, and nothing can lock up.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count, cycle

from clip_retrieval.encoder.base import Pixels
from clip_retrieval.encoder.devices import allocate_pixels
from clip_retrieval.inference.readers.pool import Chunk, Prepared, Readers, Results
from clip_retrieval.inference.readers.prepare import Wanted, prepare_chunk
from clip_retrieval.inference.readers.shared_pixels import SharedPixels
from clip_retrieval.inference.types import Batch, Row
from clip_retrieval.sources.types import Failure, Sample

CHUNK_SIZE = 16
BUFFERS = 3  # batches of pixels: one fills while the model has two
FIRST_BATCH = 64
MOST_ROWS = 4  # times batch_size; for inputs in which few rows have a picture
SECONDS_FOR_THE_FEEDER = 1.0


class Pending:
    """The batch that is being filled."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.image_count = self.dropped_count = 0
        self.read_seconds = self.decode_seconds = 0.0
        self.warnings: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        self.failures += row.failures
        self.image_count += row.has_image
        if row.is_dropped:
            self.dropped_count += 1
        else:
            self.rows.append(row)

    def fill(self, buffer: Pixels, pixels: Pixels) -> None:
        """Copy the pixels of the rows that were added last."""
        buffer[self.image_count - len(pixels) : self.image_count] = pixels


class LoaderClosedError(Exception):
    """The loader was closed while it still read."""


class Loader:
    """Prepares samples in `reader_count` processes (0: in this one) and gives them back in order.

    Batches are where `device` can fetch them itself. A reader that takes more than `timeout_seconds` for one sample is
    replaced; 0: it may take forever.
    """

    def __init__(
        self, wanted: Wanted, batch_size: int, reader_count: int, timeout_seconds: float = 0.0, device: str = "cpu"
    ) -> None:
        self.wanted = wanted
        self.batch_size = self.wanted_size = batch_size
        side = wanted.preprocess.size if wanted.image else 1
        self.buffers = [allocate_pixels((batch_size, side, side, 3), device) for _ in range(BUFFERS)]
        # Slots for a batch, so that readers go on while the model has both buffers, and one for each reader.
        slot_count = -(-batch_size // CHUNK_SIZE) + reader_count
        self.shape = (slot_count, CHUNK_SIZE, side, side, 3)
        self.pixels = SharedPixels.create(self.shape)
        self.free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slot_count):
            self.free_slots.put(slot)
        self.results: Results = queue.SimpleQueue()
        self.is_closed = False
        self.feeder: threading.Thread | None = None
        self.readers = Readers(wanted, self.pixels, self.results, reader_count, timeout_seconds)

    def batches(self, items: Iterable[Sample | Failure]) -> Iterator[Batch]:
        """Yield batches in input order, of `batch_size` pictures or, without pictures, rows. One call at a time.

        The first is smaller, so that the model need not wait long for it; the last may be smaller. The pixels of a
        batch are overwritten when BUFFERS more were requested.
        """
        buffers = cycle(self.buffers)
        pixels, pending, self.wanted_size = next(buffers), Pending(), min(FIRST_BATCH, self.batch_size)
        for prepared in self.in_order(items):
            pending.failures += prepared.chunk.failures
            pending.read_seconds += prepared.result.read_seconds
            pending.decode_seconds += prepared.result.decode_seconds
            pending.warnings.update(prepared.result.warnings)
            slot, copied, seen = self.pixels.slots[prepared.chunk.slot], 0, 0
            for row in prepared.result.rows:
                seen += row.has_image
                pending.add(row)
                if self.is_full(pending):
                    pending.fill(pixels, slot[copied:seen])
                    copied = seen
                    yield self.batch(pending, pixels)
                    pixels, pending, self.wanted_size = next(buffers), Pending(), self.batch_size
            pending.fill(pixels, slot[copied:seen])
            self.free_slots.put(prepared.chunk.slot)
        if pending.rows or pending.failures or pending.dropped_count:
            yield self.batch(pending, pixels)

    def is_full(self, pending: Pending) -> bool:
        counted = pending.image_count if self.wanted.image else len(pending.rows)
        return counted == self.wanted_size or len(pending.rows) == MOST_ROWS * self.wanted_size

    def batch(self, pending: Pending, pixels: Pixels) -> Batch:
        taken = pixels[: pending.image_count] if self.wanted.image else None
        return Batch(
            rows=pending.rows,
            pixels=taken,
            failures=pending.failures,
            dropped_count=pending.dropped_count,
            read_seconds=pending.read_seconds,
            decode_seconds=pending.decode_seconds,
            warnings=pending.warnings,
        )

    def in_order(self, items: Iterable[Sample | Failure]) -> Iterator[Prepared]:
        """Start reading, and yield chunks by number, in whatever order the readers finish."""
        self.feeder = threading.Thread(target=self.feed, args=(items,), daemon=True)
        self.feeder.start()
        waiting: dict[int, Prepared] = {}
        total: int | None = None
        number = 0
        while total is None or number < total:
            result = self.results.get()
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, int):
                total = result
                continue
            waiting[result.chunk.number] = result
            while number in waiting:
                yield waiting.pop(number)
                number += 1

    def feed(self, items: Iterable[Sample | Failure]) -> None:
        """Cut the items into chunks, give each a slot in order, and hand them to the readers."""
        numbers = count()
        samples: list[Sample] = []
        failures: list[Failure] = []
        try:
            for item in items:
                if isinstance(item, Failure):
                    failures.append(item)
                else:
                    samples.append(item)
                if len(samples) == CHUNK_SIZE or len(failures) >= CHUNK_SIZE:
                    self.dispatch(Chunk(next(numbers), self.take_slot(), samples, failures))
                    samples, failures = [], []
            if samples or failures:
                self.dispatch(Chunk(next(numbers), self.take_slot(), samples, failures))
            self.results.put(next(numbers))
        except BaseException as error:  # a thread's error would be lost otherwise  # noqa: BLE001
            self.results.put(error)

    def take_slot(self) -> int:
        slot = self.free_slots.get()
        if self.is_closed:
            raise LoaderClosedError
        return slot

    def dispatch(self, chunk: Chunk) -> None:
        if self.readers.all:
            self.readers.tasks.put(chunk)
        else:
            self.results.put(Prepared(chunk, prepare_chunk(chunk.samples, self.wanted, self.pixels.slots[chunk.slot])))

    def close(self) -> None:
        """End the readers and free the shared memory."""
        self.is_closed = True
        self.free_slots.put(0)  # wakes the feeder, which then ends
        if self.feeder is not None and self.feeder.is_alive():
            self.feeder.join(SECONDS_FOR_THE_FEEDER)  # it may wait for a source that stalls
        self.readers.close()
        self.pixels.close()
