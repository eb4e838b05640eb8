"""Warnings of Pillow and libtiff, counted by reason: a folder of old photographs would fill the terminal with them.

Pillow warns through Python's `warnings`; libtiff writes its errors to the process's stderr, as with Pillow alone.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

DECODERS = re.compile(r"[\\/](PIL|pillow_heif|pillow_avif)[\\/]")  # path of the warning module
END_OF_REASON = re.compile(r"\.\s|\.$|:\s")
NUMBER = re.compile(r"\d+")
FORMAT_FIELD = re.compile(r"%[-+ #0]*[\d.*]*(hh|h|ll|l|z|j|t)?[a-zA-Z]")
SHOWN_REASONS = 5
LIBTIFF_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)  # module, format, values

lock = threading.Lock()
open_counts: list[Counter[str]] = []  # counters of active blocks in all threads
restore = ExitStack()  # callbacks that the last active block runs


@contextmanager
def counting_warnings() -> Iterator[Counter[str]]:
    """Count the decoders' warnings, of all threads, while the block runs; other warnings are shown as before.

    Blocks may overlap in several threads; each then counts the warnings of all.
    """
    counts: Counter[str] = Counter()
    with lock:
        if not open_counts:
            redirect_libtiff()
            redirect_python()
        open_counts.append(counts)
    try:
        yield counts
    finally:
        with lock:
            open_counts[:] = [other for other in open_counts if other is not counts]
            if not open_counts:
                restore.close()


def redirect_python() -> None:
    restore.enter_context(warnings.catch_warnings())
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if DECODERS.search(filename):
            count(reason_of(str(message)))
        else:
            show_others(message, category, filename, *rest)

    warnings.showwarning = show  # type: ignore[assignment]  # it passes the rest on
    warnings.filterwarnings("always", module=r"(PIL|pillow_heif|pillow_avif)\b")


def count(reason: str) -> None:
    for counts in tuple(open_counts):
        counts[reason] += 1


def reason_of(message: str) -> str:
    """Return the first clause of a warning without its numbers: which warnings about many pictures have in common."""
    words = NUMBER.sub("N", END_OF_REASON.split(" ".join(message.split()), maxsplit=1)[0])
    return words[:1].lower() + words[1:]


def count_libtiff(_module: bytes | None, message: bytes | None, _values: int | None) -> None:
    """Count an error by its format, in which numbers and names are not filled in yet."""
    words = FORMAT_FIELD.sub("N", (message or b"").decode("utf-8", "replace"))
    count(f"libtiff, {words.rstrip('.').removeprefix('N: ')}")


handler = LIBTIFF_HANDLER(count_libtiff)  # must live as long as the process, since libtiff keeps its address


@cache
def redirect_libtiff() -> None:
    """Have libtiff call `count_libtiff` instead of writing to stderr; if its library is not found, nothing changes."""
    path = find_libtiff()
    if path is None:
        return
    try:
        ctypes.CDLL(path).TIFFSetErrorHandler(handler)
    except (OSError, AttributeError):
        return


def find_libtiff() -> str | None:
    """Return the libtiff that Pillow has loaded; None on systems that do not list a process's libraries."""
    if not sys.platform.startswith("linux"):
        return None
    from PIL import _imaging  # noqa: F401, PLC0415 -- loads its libraries

    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    found = re.search(r"\s(/\S*libtiff[^/\n]*\.so[^/\n]*)$", maps, re.MULTILINE)
    return found[1] if found else None


def in_one_line(counts: Mapping[str, int]) -> str:
    """Return the commonest reasons, such as `467 x corrupt EXIF data, 3 x truncated file read`."""
    common = Counter(counts).most_common()
    words = [f"{count:,} x {reason}" for reason, count in common[:SHOWN_REASONS]]
    others = sum(count for _, count in common[SHOWN_REASONS:])
    return ", ".join([*words, *([f"{others:,} others"] if others else [])])
