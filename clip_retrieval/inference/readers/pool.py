"""Reader processes as their worker sees them: each has a thread that gives it chunks and passes its rows on.

A reader that dies or hangs is replaced, and its chunk prepared again: the bytes of the output do not change. `blame.py`
decides what becomes of a sample that ends readers again and again.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from clip_retrieval.errors import WorkerError
from clip_retrieval.inference.readers.blame import Case
from clip_retrieval.inference.readers.link import ReaderLink, ReaderLostError
from clip_retrieval.inference.readers.prepare import PreparedChunk, Wanted
from clip_retrieval.inference.readers.shared_pixels import MOST_READERS, SharedPixels
from clip_retrieval.sources.types import Failure, Sample

MOST_STARTS = 3
SECONDS_FOR_A_THREAD = 2.0
TO_GO_ON = "finished partitions are kept, run the same command to go on"


@dataclass(frozen=True)
class Chunk:
    """Samples under way, and what the source left out before the first of them."""

    number: int
    slot: int
    samples: list[Sample]
    failures: list[Failure]


@dataclass(frozen=True)
class Prepared:
    """A prepared chunk."""

    chunk: Chunk
    result: PreparedChunk


Results = queue.SimpleQueue[Prepared | BaseException | int]


class ReadersClosedError(Exception):
    """The readers were closed while a request was under way."""


class Readers:
    """A pool of reader processes; a free one takes the next chunk, and puts its rows into `results`."""

    def __init__(
        self, wanted: Wanted, pixels: SharedPixels, results: Results, count: int, timeout_seconds: float
    ) -> None:
        self.wanted, self.pixels, self.results = wanted, pixels, results
        self.timeout_seconds = timeout_seconds
        self.is_closed = False
        self.tasks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self.all = [Reader(self, number) for number in range(min(count, MOST_READERS))]

    def close(self) -> None:
        self.is_closed = True
        for _ in self.all:
            self.tasks.put(None)
        for reader in self.all:
            reader.kill()
        for reader in self.all:
            reader.close()


class Reader:
    """The thread that feeds one reader process, and replaces the process when it is lost."""

    def __init__(self, readers: Readers, number: int) -> None:
        self.readers, self.number = readers, number
        self.lock = threading.Lock()  # prevents starting a process after all were killed
        self.link = self.connect()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def connect(self) -> ReaderLink:
        with self.lock:
            if self.readers.is_closed:
                raise ReadersClosedError
            self.link = ReaderLink(self.readers.pixels.note(self.number), self.readers.timeout_seconds)
            return self.link

    def run(self) -> None:
        try:
            self.start()
            while (chunk := self.readers.tasks.get()) is not None:
                self.readers.results.put(Prepared(chunk, self.prepare(chunk)))
        except ReadersClosedError:
            return
        except BaseException as error:  # a thread's error would be lost otherwise  # noqa: BLE001
            self.readers.results.put(error)

    def start(self) -> None:
        """Start the process and wait until it takes chunks; a process that fails to start is not retried."""
        pixels = self.readers.pixels
        for _ in range(MOST_STARTS):
            try:
                self.link.greet((self.readers.wanted, pixels.path, pixels.shape, self.number))
            except ReaderLostError as error:
                loss = error
                if (self.link.process.returncode or 0) > 0:
                    break
                self.connect()
            else:
                return
        raise WorkerError(f"a reader process {loss.how} while it started; {TO_GO_ON}")

    def prepare(self, chunk: Chunk) -> PreparedChunk:
        """Return the rows of a chunk, replacing lost reader processes."""
        case = Case(chunk.samples, wants_images=self.readers.wanted.image)
        while True:
            try:
                result: PreparedChunk = self.link.ask((chunk.slot, case.next_samples()))
            except ReaderLostError as loss:
                if not case.note_loss(loss):
                    raise WorkerError(
                        f"reader processes end again and again: the last one {loss.how}; {TO_GO_ON}"
                    ) from loss
                self.connect()
                self.start()
                continue
            if case.acquit():
                return result._replace(rows=case.complete(result.rows))

    def kill(self) -> None:
        with self.lock:
            self.link.give_up()

    def close(self) -> None:
        self.thread.join(SECONDS_FOR_A_THREAD)
        self.link.close()
