"""Large text and color profiles in PNG files, such as ComfyUI's workflows: left out, because Pillow would refuse them.

Pillow raises if such a chunk inflates to more than 1 MiB. Only the orientation is needed of them, which XMP or
a raw EXIF profile may hold.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KINDS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
WITH_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
LARGEST_KEPT = 1 << 20  # bytes after inflating; Pillow's own limit
SURELY_SMALL = 1000  # bytes that cannot inflate past the limit: deflate's best ratio is 1,032


class Chunk(NamedTuple):
    """A chunk of a PNG: its kind, and where it starts and ends with its length and checksum."""

    kind: bytes
    start: int
    end: int


def without_large_text(data: bytes) -> bytes:
    """Return a PNG without text that Pillow might refuse; other bytes, and PNG with little text, unchanged."""
    if not data.startswith(SIGNATURE):
        return data
    dropped = [chunk for chunk in chunks_of(data) if chunk.kind in TEXT_KINDS and is_too_large(data, chunk)]
    if not dropped:
        return data
    view, at, kept = memoryview(data), 0, []
    for chunk in dropped:
        kept.append(view[at : chunk.start])
        at = chunk.end
    return b"".join([*kept, view[at:]])


def chunks_of(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks up to the first that is cut off; Pillow says what is wrong with the rest."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield Chunk(data[at + 4 : at + 8], at, end)
        at = end


def is_too_large(data: bytes, chunk: Chunk) -> bool:
    if chunk.end - chunk.start <= SURELY_SMALL:
        return False
    body = data[chunk.start + 8 : chunk.end - 4]
    keyword = next((known for known in WITH_ORIENTATION if body.startswith(known)), None)
    return keyword is None or len(body) > LARGEST_KEPT or inflates_too_far(chunk.kind, body[len(keyword) :])


def inflates_too_far(kind: bytes, value: bytes) -> bool:
    """Say whether the value after the keyword is compressed and larger than what is kept; inflates no more of it."""
    if kind == b"tEXt" or (kind == b"iTXt" and value[:1] == b"\0"):
        return False
    deflated = value[1:] if kind == b"zTXt" else value[2:].split(b"\0", 2)[-1]
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(deflated, LARGEST_KEPT)
    except zlib.error:
        return True
    return bool(inflater.unconsumed_tail)
