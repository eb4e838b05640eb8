"""Reader processes as their worker sees them: each has a thread that gives it chunks and passes its rows on."""

from __future__ import annotations

import queue
import subprocess
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from clip_retrieval.errors import WorkerError
from clip_retrieval.inference.prepare import PreparedChunk, Wanted
from clip_retrieval.inference.reader_process import receive, send
from clip_retrieval.inference.types import Failure, Sample
from clip_retrieval.subprocesses import module_command, module_environment

if TYPE_CHECKING:
    from clip_retrieval.inference.loader import Loader


@dataclass(frozen=True)
class Chunk:
    """Samples under way, and what the source left out before the first of them."""

    number: int
    slot: int
    samples: list[Sample]
    failures: list[Failure]


@dataclass(frozen=True)
class Prepared:
    """A chunk that came back."""

    chunk: Chunk
    result: PreparedChunk


Tasks = queue.SimpleQueue[Chunk | None]
Results = queue.SimpleQueue[Prepared | BaseException | int]


class Reader:
    """One reader process, and the thread that feeds it."""

    def __init__(self, loader: Loader, wanted: Wanted, shape: tuple[int, int, int, int, int]) -> None:
        self.loader = loader
        self.greeting = (wanted, loader.pixels.path, shape)
        self.process = subprocess.Popen(
            module_command("clip_retrieval.inference.reader_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=module_environment(OMP_NUM_THREADS="1"),
        )
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        chunk: Chunk | None = None
        try:
            commands, answers = self.pipes()
            send(commands, self.greeting)
            receive(answers)
            while (chunk := self.loader.tasks.get()) is not None:
                send(commands, (chunk.slot, chunk.samples))
                self.loader.results.put(Prepared(chunk, receive(answers)))
        except (EOFError, OSError):
            if not self.loader.is_closed:
                self.loader.results.put(WorkerError(self.explain_death(chunk)))

    def explain_death(self, chunk: Chunk | None) -> str:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        where = (
            f" while it prepared {chunk.samples[0].key} … {chunk.samples[-1].key}" if chunk and chunk.samples else ""
        )
        return f"a reader process {how}{where}; finished partitions are kept, run the same command to go on"

    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def stop(self) -> None:
        self.process.kill()  # it holds nothing that could be lost
        self.process.wait()
        self.thread.join()
        for pipe in self.pipes():
            try:
                pipe.close()
            except BrokenPipeError:
                continue
