"""Files that hold many pictures, in a reader process: the last one stays open, for its next picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from clip_retrieval.blobs import BlobRef, read_blob
from clip_retrieval.errors import ImageError
from clip_retrieval.media.pdf import Document
from clip_retrieval.media.places import PlaceRef, is_video
from clip_retrieval.media.subtitles import Subtitles
from clip_retrieval.media.video import Video
from clip_retrieval.sources.suffixes import SUBTITLE_SUFFIXES

Holder = Document | Video | Subtitles

DIGEST_BYTES = 16
PIECES, PIECE_BYTES = 16, 1 << 18  # of a video that are hashed: nothing else needs all of it


def digest_bytes(data: bytes) -> bytes:
    """Return the digest of a file's content, as in the ledger."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def digest_place(file: bytes, place: int) -> bytes:
    """Return a picture's digest from that of its file: pictures of one file differ, those of equal files do not."""
    return digest_bytes(file + str(place).encode())


def digest_holder(url: str, size: int | None) -> bytes:
    """Return the digest of a file that holds many pictures; for a large video, of its size and pieces all over it."""
    if not is_video(url) or size is None or size <= PIECES * PIECE_BYTES:
        return digest_bytes(read_blob(BlobRef(url)))
    digest = hashlib.sha256(str(size).encode())
    for piece in range(PIECES):
        digest.update(read_blob(BlobRef(url, (size - PIECE_BYTES) * piece // (PIECES - 1), PIECE_BYTES)))
    return digest.digest()[:DIGEST_BYTES]


@dataclass(frozen=True)
class Opened:
    """A file, or what is wrong with it and so with each of its pictures."""

    ref: PlaceRef
    digest: bytes
    file: Holder | ImageError


class Holders:
    """Opens files that hold many pictures; memory holds one, and the subtitles of one video."""

    def __init__(self) -> None:
        self.last: dict[bool, Opened] = {}  # by whether it is subtitles

    def open(self, ref: PlaceRef, most_pixels: int) -> Opened:
        """Return the file of a picture or of its text; raises OSError if it cannot be read."""
        slot = is_subtitles(ref.url)
        last = self.last.get(slot)
        if last is None or last.ref != ref._replace(place=last.ref.place):
            self.close(slot)
            last = self.last[slot] = open_holder(ref, most_pixels)
        return last

    def close(self, slot: bool) -> None:  # noqa: FBT001 -- a key
        last = self.last.pop(slot, None)
        if last is not None and isinstance(last.file, Document | Video):
            last.file.close()


def is_subtitles(url: str) -> bool:
    return url.lower().endswith(SUBTITLE_SUFFIXES)


def open_holder(ref: PlaceRef, most_pixels: int) -> Opened:
    file: Holder | ImageError
    if is_video(ref.url):
        digest = digest_holder(ref.url, ref.size)
    else:
        data = read_blob(BlobRef(ref.url))
        digest = digest_bytes(data)
    try:
        if is_video(ref.url):
            file = Video(ref.url, most_pixels)
        else:
            file = Subtitles(data, ref.url) if is_subtitles(ref.url) else Document(data)
    except ImageError as error:
        file = error
    return Opened(ref, digest, file)
