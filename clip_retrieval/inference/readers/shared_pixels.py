"""Memory that reader processes write pixels into and the worker reads: no copy through a pipe, no leak.

On Linux an anonymous memory file, which vanishes with the last process that holds it; elsewhere a temporary
file. Neither is bounded by /dev/shm, which containers often keep at 64 MB.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Self

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int, int, int]  # slots, pictures in a slot, side, side, 3

NOTES_BYTES = 1 << 16
MOST_READERS = NOTES_BYTES // 16
IDLE = -1


class Note:
    """Two numbers that a reader writes and its worker reads, even after the reader is dead."""

    def __init__(self, words: NDArray[np.int64]) -> None:
        self.words = words  # [2]: samples begun in all, place in its chunk of the one under way or IDLE

    @property
    def begun_count(self) -> int:
        return int(self.words[0])

    @property
    def place(self) -> int | None:
        """The place in its chunk of the sample under way; None between chunks."""
        return None if self.words[1] == IDLE else int(self.words[1])

    def begin(self, place: int) -> None:
        self.words[1] = place
        self.words[0] += 1

    def rest(self) -> None:
        self.words[1] = IDLE


class SharedPixels:
    """An array of slots; a slot holds the pictures of one chunk. Before them is a note for each reader."""

    def __init__(self, descriptor: int, shape: Shape, path: str, *, is_owner: bool) -> None:
        self.path = path
        self.shape = shape
        self.is_owner = is_owner
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, NOTES_BYTES + int(np.prod(shape)))
        self.notes: NDArray[np.int64] = np.frombuffer(self.memory, np.int64, MOST_READERS * 2).reshape(-1, 2)
        self.slots: NDArray[np.uint8] = np.frombuffer(self.memory, np.uint8, offset=NOTES_BYTES).reshape(shape)

    def note(self, reader_number: int) -> Note:
        return Note(self.notes[reader_number])

    @classmethod
    def create(cls, shape: Shape) -> Self:
        size = int(np.prod(shape))
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("clip-retrieval-pixels")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor, path = tempfile.mkstemp(prefix="clip-retrieval-pixels-")
        os.ftruncate(descriptor, NOTES_BYTES + size)
        return cls(descriptor, shape, path, is_owner=True)

    @classmethod
    def attach(cls, path: str, shape: Shape) -> Self:
        return cls(os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)), shape, path, is_owner=False)

    def close(self) -> None:
        """Free the memory; the array must not be used after this."""
        del self.slots, self.notes
        os.close(self.descriptor)
        if self.is_owner and not self.path.startswith("/proc/"):
            os.unlink(self.path)  # noqa: PTH108 -- a plain string, as the rest here
