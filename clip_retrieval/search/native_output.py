"""Drops what faiss prints by itself: stdout is for results, which programs read, and errors are raised."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def printing_nothing() -> Iterator[None]:
    """Drop what native code writes to stdout during the block."""
    flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        flush()
        os.dup2(kept, 1)
        os.close(kept)


def flush() -> None:
    """Flush the buffers of Python and the C library; an error comes up again at the next print."""
    if sys.stdout is not None:  # a program without a console has none
        with suppress(OSError, ValueError):
            sys.stdout.flush()
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)
