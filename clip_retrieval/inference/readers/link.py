"""A reader process and its pipes. No wait is endless: a hung reader is killed, a dead one is reported."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
from typing import IO, Any

from clip_retrieval.inference.readers.process import LENGTH
from clip_retrieval.inference.readers.shared_pixels import Note
from clip_retrieval.process.subprocesses import describe_end, start_module

SECONDS_TO_DIE = 5.0  # a process that waits for a stalled file system may not even obey SIGKILL
SECONDS_TO_START = 120.0
SECONDS_BETWEEN_LOOKS = 1.0
PIPE_BYTES = 1 << 16

# Thresholds of glibc in a reader, unless the user has set some. Its pictures come and go by the hundred: glibc would
# give their memory back to the system each time, and the system would fill it with zeros again.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": f"{8 << 20}", "MALLOC_MMAP_THRESHOLD_": f"{4 << 20}"}


class ReaderLostError(Exception):
    """A reader died or hung: `reason` in one word, how it ended, and the sample under way."""

    def __init__(self, reason: str, how: str, place: int | None) -> None:
        super().__init__(f"a reader process {how}")
        self.reason, self.how, self.place = reason, how, place


class ReaderLink:
    """One reader process; `timeout_seconds` is how long one sample may take (0: forever).

    Windows has no poll: a hung reader is not noticed there.
    """

    def __init__(self, note: Note, timeout_seconds: float) -> None:
        self.note = note
        self.timeout_seconds = timeout_seconds
        self.task = "one sample"  # named in the sentence if the reader hangs
        self.is_given_up = False
        self.received = bytearray()  # of the answer that is being read
        note.rest()
        self.process = start_module(
            "clip_retrieval.inference.readers.process",
            OMP_NUM_THREADS="1",
            **{name: os.environ.get(name, value) for name, value in MALLOC.items()},
        )
        self.commands, self.answers = pipes_of(self.process)
        if hasattr(select, "poll"):
            os.set_blocking(self.commands.fileno(), False)

    def greet(self, message: object) -> None:
        """Send the start-up message; starting may take longer than one sample."""
        limit = self.timeout_seconds
        self.task, self.timeout_seconds = "its start", max(limit, SECONDS_TO_START) if limit else 0.0
        self.ask(message)
        self.task, self.timeout_seconds = "one sample", limit

    def ask(self, message: object) -> Any:
        """Return the answer; raises ReaderLostError."""
        try:
            payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
            self.write(LENGTH.pack(len(payload)) + payload)
            (length,) = LENGTH.unpack(self.read(LENGTH.size))
            return pickle.loads(self.read(length))
        except TimeoutError as error:
            raise self.lost("timeout", f"spent more than {self.timeout_seconds:g} s on {self.task}") from error
        except (EOFError, OSError) as error:
            raise self.lost("killed_reader", None) from error

    def lost(self, reason: str, how: str | None) -> ReaderLostError:
        place = self.note.place
        if how is None:  # its pipe is closed, so it is about to end by itself
            how = describe_end(self.process, SECONDS_TO_DIE)
        self.close()
        return ReaderLostError(reason, how, place)

    def write(self, payload: bytes) -> None:
        rest = memoryview(payload)
        while rest:
            try:
                rest = rest[os.write(self.commands.fileno(), rest) :]
            except BlockingIOError:
                self.wait(self.commands, "POLLOUT")

    def read(self, size: int) -> bytes:
        """Return so many bytes of the answer, and keep what came after them: each system call costs time."""
        while len(self.received) < size:
            self.wait(self.answers, "POLLIN")
            got = os.read(self.answers.fileno(), max(PIPE_BYTES, size - len(self.received)))
            if not got:
                raise EOFError
            self.received += got
        payload = bytes(self.received[:size])
        del self.received[:size]
        return payload

    def wait(self, pipe: IO[bytes], event: str) -> None:
        """Wait until the pipe is ready; raises TimeoutError when the reader begins no sample for too long.

        Only time spent waiting counts, not the clock: a run that was suspended has not hung.
        """
        if not hasattr(select, "poll"):
            return
        poll = select.poll()
        poll.register(pipe, getattr(select, event))
        limit = self.timeout_seconds or float("inf")
        look = min(SECONDS_BETWEEN_LOOKS, limit / 4)
        waited, begun_count = 0.0, self.note.begun_count
        while not poll.poll(look * 1000):
            waited += look
            if self.note.begun_count != begun_count:
                waited, begun_count = 0.0, self.note.begun_count
            if waited >= limit or self.is_given_up:
                raise TimeoutError

    def give_up(self) -> None:
        """Kill the process, which holds no state; a thread that waits for it gets an error."""
        self.is_given_up = True
        self.process.kill()

    def close(self) -> None:
        """Kill the process and close the pipes."""
        self.give_up()
        describe_end(self.process, SECONDS_TO_DIE)
        self.commands.close()
        self.answers.close()


def pipes_of(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
