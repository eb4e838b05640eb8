"""Standard streams that a caller closed or filled up: nothing that a command writes may depend on them."""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from clip_retrieval.errors import describe_os_error
from clip_retrieval.words import printable


def open_missing_streams() -> None:
    """Open the null device in place of closed standard streams.

    Danger otherwise: the next file that is opened gets the free number, and what a library prints lands in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:  # closed, or a program without a console (pythonw)
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- for the life of the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- for the life of the process


def take_stdout() -> BinaryIO:
    """Return stdout for answers to the parent; anything printed after this, also by libraries, goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


class PrintableFormatter(logging.Formatter):
    """Formats log lines with terminal controls escaped, since file names may hold them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, and a traceback if there is one."""
        return printable(super().format(record))


def log_to_stderr(level: int) -> None:
    """Write log messages of this level and above to stderr, instead of any earlier setup."""
    logging.basicConfig(level=level, stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(message)s"))


def say_error(sentence: str) -> None:
    """Write a sentence to stderr; drop it if stderr cannot be written to."""
    with suppress(OSError, AttributeError):  # full, broken, or None
        sys.stderr.write(f"{printable(sentence)}\n")
        sys.stderr.flush()


def flush_streams(code: int) -> int:
    """Flush the streams; return the exit code, 1 if stdout's fails and the command had succeeded."""
    with suppress(OSError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError as error:
        tell_unprinted(error)
        return code or 1
    return code


def tell_unprinted(error: OSError) -> None:
    """Say that the outcome cannot be printed; silent if the reader closed the pipe, as `head` does.

    What stdout still holds goes to the null device, or Python would try again when it ends.
    """
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    if error.errno != errno.EPIPE:
        say_error(f"Error: the outcome cannot be printed: {describe_os_error(error)}")
