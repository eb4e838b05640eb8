"""Sizes, durations and foreign text in words that a terminal can show."""

from __future__ import annotations

import json
import math
import re

MACOS_FOLDER = "__MACOSX"
MINUTE, HOUR = 60, 3600

SURROGATES = re.compile("[\ud800-\udfff]")
RAW_BYTES = range(0xDC80, 0xDD00)  # how Python holds the bytes of a file name that is not UTF-8
# Control characters (C0 and C1) except tab and line feed, line separators, bidirectional controls, and surrogates.
# Zero-width joiners stay: emoji need them.
UNPRINTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

UNITS = ("kB", "MB", "GB")


KILOBYTES_FROM, MEGABYTES_FROM = 10_000, 100_000_000  # bytes; smallest sizes shown in whole kB and MB


def bound_above(count: int) -> str:
    """Return `count` bytes, rounded up to whole bytes, kB or MB by size, such as 54kB."""
    if count < KILOBYTES_FROM:
        return f"{count}B"
    if count < MEGABYTES_FROM:
        return f"{math.ceil(count / 1000)}kB"
    return f"{math.ceil(count / 1_000_000)}MB"


def in_bytes(count: float) -> str:
    """Return a size in the unit that suits it, in powers of 1000, such as 1.2 GB."""
    if count < 999.5:  # 999.5 and above would round to 1000
        return f"{count:.0f} {'byte' if round(count) == 1 else 'bytes'}"
    for unit in UNITS:
        count /= 1000
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.95 else f"{count:.1f} {unit}"
    return f"{count / 1000:,.1f} TB"


def clean(text: str) -> str:
    """Return the text with what UTF-8 cannot hold (lone surrogates, raw bytes of file names) shown as U+FFFD."""
    return SURROGATES.sub("\ufffd", text)


def printable(text: str) -> str:
    r"""Return the text with terminal and bidirectional controls escaped, such as `\x1b`."""
    return UNPRINTED.sub(lambda found: escape(ord(found[0])), text)


def json_text(value: object) -> str:
    """Return JSON in which control characters and surrogates are JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape(code: int) -> str:
    if code in RAW_BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shorten(text: str, most: int) -> str:
    """Return the text on one line, printable, and cut to `most` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def in_words(seconds: float) -> str:
    """Return a duration in the unit that suits it, such as 45 s, 12 min or 3 h 20 min."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{int(seconds // HOUR)} h {int(seconds % HOUR // MINUTE)} min"


def is_hidden(path: str) -> bool:
    """Say whether a name in the path starts with a dot or is __MACOSX: `.git/x.jpg`, `a/._x.jpg`, but not `./x.jpg`.

    macOS writes a `._x.jpg` next to each `x.jpg` into tars, into the __MACOSX folder of zips, and onto foreign disks.
    """
    if not (path.startswith(".") or "/." in path or MACOS_FOLDER in path):
        return False  # fast path: nearly all names
    return any((part.startswith(".") and part not in (".", "..")) or part == MACOS_FOLDER for part in path.split("/"))


def with_article(noun: str) -> str:
    """Return the noun after "a" or "an", by its first letter."""
    return f"{'an' if noun[:1].lower() in {*'aeiou'} else 'a'} {noun}"


def counted(count: int, what: str, several: str = "") -> str:
    """Return a number and its noun, whose plural is `several` if an s does not make it."""
    return f"{count:,} {what if count == 1 else several or what + 's'}"
