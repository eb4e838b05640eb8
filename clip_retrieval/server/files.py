"""The PDF or video that the picture of a row is in, in pieces: browsers request the pieces that they show."""

from __future__ import annotations

import asyncio
import mimetypes
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from io import SEEK_END

from clip_retrieval.blobs import BlobRef, open_raw, read_blob
from clip_retrieval.layout import IMAGE_PATH, SHARD
from clip_retrieval.media.places import split_place
from clip_retrieval.query.pictures import find_file
from clip_retrieval.server.indices import Generation
from clip_retrieval.server.messages import Header, HttpError, Request
from clip_retrieval.server.pictures import read_row

PIECE_BYTES = 1 << 20  # read at once
MOST_BYTES = 4 << 20  # of an answer to a request for a range: players request the next one
RANGE = re.compile(rb"bytes=[ \t,]*(\d*)-(\d*)[ \t,]*", re.IGNORECASE)  # lists may have empty places (RFC 9110, 5.6.1)
DIGITS_OF_A_PLACE = 18
MEDIA_TYPES = {  # types that Python does not know, and types that browsers play under another name
    ".mov": "video/mp4", ".m4v": "video/mp4", ".mkv": "video/x-matroska", ".m2ts": "video/mp2t", ".mts": "video/mp2t",
}  # fmt: skip


@dataclass(frozen=True)
class HeldFile:
    """A file below the roots that contains pictures of rows; `read` returns the bytes between two places."""

    size: int
    media_type: str
    read: Callable[[int, int], Awaitable[bytes]]

    async def pieces(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the file piece by piece, until its end or until the client hangs up."""
        gone = asyncio.ensure_future(request.wait_until_gone())
        try:
            for start in range(0, self.size, PIECE_BYTES):
                if gone.done():
                    return
                yield await self.read(start, min(start + PIECE_BYTES, self.size))
        finally:
            gone.cancel()


def find_held_file(generation: Generation, row_id: int) -> tuple[str, int] | None:
    """Return the place and size of the file of a row's page or frame; None if it has none below the roots."""
    row = read_row(generation, row_id)
    found = split_place(str(row.get(IMAGE_PATH) or ""))
    if found is None or row.get(SHARD) is not None or not generation.roots.allow(row):
        return None
    with suppress(OSError, ValueError):  # it is gone, or cannot be read
        url = find_file(found[0])
        with open_raw(url) as file:
            return url, file.seek(0, SEEK_END)
    return None


def media_type_of(url: str) -> str:
    suffix = url[url.rfind(".") :].lower()
    return MEDIA_TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")


def read_piece(url: str, start: int, stop: int) -> bytes:
    """Return the bytes of a file from `start` to `stop`. Raises OSError."""
    return read_blob(BlobRef(url, start, stop - start))


def find_range(request: Request, size: int) -> tuple[int, int] | None:
    """Return the range of a file for a request, by RFC 9110: only for a GET without If-Range.

    Files have no validator, so If-Range never matches. Raises HttpError 416 as `read_range` does.
    """
    if request.method != "GET" or request.header(b"if-range") is not None:
        return None
    return read_range(request.header(b"range"), size)


def read_range(asked: bytes | None, size: int) -> tuple[int, int] | None:
    """Return start and stop of the range in a header, at most MOST_BYTES of it; None: the whole file.

    Other units, several ranges, and a range that ends before it begins are ignored. Raises HttpError 416 if the range
    is empty.
    """
    found = RANGE.fullmatch(asked or b"")
    if found is None or found.group(1, 2) == (b"", b""):
        return None
    first, last = (read_place(digits) for digits in found.groups())
    if first is None:  # the last bytes
        if not size and last:  # the last bytes of an empty file are the whole file
            return None
        start, stop = max(0, size - (last or 0)), size
    elif last is not None and last < first:
        return None
    else:
        start, stop = first, size if last is None else min(size, last + 1)
    if start >= stop:
        headers: tuple[Header, ...] = ((b"content-range", f"bytes */{size}".encode()),)
        raise HttpError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {size:,} bytes", headers)
    return start, min(stop, start + MOST_BYTES)


def read_place(digits: bytes) -> int | None:
    """Return a place in a file; None without digits. A place with too many digits is after the end of every file."""
    if not digits:
        return None
    digits = digits.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= DIGITS_OF_A_PLACE else 10**DIGITS_OF_A_PLACE
