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


class SharedPixels:
    """An array of slots; a slot holds the pictures of one chunk."""

    def __init__(self, descriptor: int, shape: Shape, path: str, *, is_owner: bool) -> None:
        self.path = path
        self.is_owner = is_owner
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, int(np.prod(shape)))
        self.slots: NDArray[np.uint8] = np.frombuffer(self.memory, dtype=np.uint8).reshape(shape)

    @classmethod
    def create(cls, shape: Shape) -> Self:
        size = int(np.prod(shape))
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("clip-retrieval-pixels")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor, path = tempfile.mkstemp(prefix="clip-retrieval-pixels-")
        os.ftruncate(descriptor, size)
        return cls(descriptor, shape, path, is_owner=True)

    @classmethod
    def attach(cls, path: str, shape: Shape) -> Self:
        return cls(os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)), shape, path, is_owner=False)

    def close(self) -> None:
        """Let go of the memory; the array must not be used after this."""
        del self.slots
        os.close(self.descriptor)
        if self.is_owner and not self.path.startswith("/proc/"):
            os.unlink(self.path)  # noqa: PTH108 -- a plain string, as the rest here
