"""Subtitles next to a video (srt, WebVTT): what is said at a time."""

from __future__ import annotations

import html
import io
import re
from typing import NamedTuple

from clip_retrieval.errors import ImageError, one_line
from clip_retrieval.media.places import MOST_LETTERS, advice

FORMATS = {".srt": "srt", ".vtt": "webvtt"}
LARGEST = 1 << 26  # bytes; those of a long film have 200 kB
TAGS = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # of HTML and WebVTT, and of SubStation Alpha, which srt borrows
UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\ufeff]")
BARE = ((b"WEBVTT",), (b"NOTE", b"STYLE", b"REGION"))  # beginnings of WebVTT's first block, and of others without cues
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Cue(NamedTuple):
    """What is said between two times in milliseconds, the second one excluded."""

    start: int
    stop: int
    text: str


class Subtitles:
    """The cues of a file in order of time; none if nobody speaks.

    Raises ImageError: needs_plugin, too_large, decode, empty.
    """

    def __init__(self, data: bytes, name: str) -> None:
        if len(data) > LARGEST:
            raise ImageError("too_large", f"more than {LARGEST:,} bytes of subtitles")
        self.cues = read_cues(as_utf8(data), FORMATS[name[name.rfind(".") :].lower()])

    def at(self, moment: int) -> str:
        """Return what is said at a time, in one line; of simultaneous cues, the earlier ones first."""
        said = (cue.text for cue in self.cues if cue.start <= moment < cue.stop)
        return " ".join(dict.fromkeys(said))[:MOST_LETTERS].rstrip()


def read_cues(data: bytes, container: str) -> list[Cue]:
    try:
        import av  # noqa: PLC0415 -- an extra, and 60 ms
    except ImportError as error:
        raise ImageError("needs_plugin", advice("video")) from error
    cues, has_times = list[Cue](), False
    try:
        with av.open(io.BytesIO(data), "r", format=container, metadata_errors="ignore") as file:
            for packet in file.demux():
                if packet.pts is None or not packet.duration or packet.time_base is None:
                    continue
                has_times = True
                start, stop = (
                    round(time * packet.time_base * 1000) for time in (packet.pts, packet.pts + packet.duration)
                )
                text = plain(bytes(packet).decode("utf-8", "replace"))
                cues += [Cue(start, stop, text)] if text else []
    except av.FFmpegError as error:
        raise ImageError("decode", f"the subtitles cannot be read: {one_line(error.strerror)}") from error
    if not has_times and not is_bare(data):
        raise ImageError("empty", "the subtitles hold nothing that is said at a time")
    return sorted(cues, key=lambda cue: cue.start)


def is_bare(data: bytes) -> bool:
    """Say whether a file is WebVTT without any cue, as of a video in which nobody speaks."""
    lines = data.strip().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    blocks = re.split(rb"\n{2,}", lines)
    return all(block.startswith(BARE[min(number, 1)]) for number, block in enumerate(blocks))


def as_utf8(data: bytes) -> bytes:
    """Return a file in UTF-8: it may be UTF-16, which its first bytes say, or Windows-1252."""
    if data.startswith(UTF16):
        return data.decode("utf-16", "replace").encode()
    try:
        return data.decode("utf-8-sig").encode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace").encode()


def plain(text: str) -> str:
    """Return the text of a cue in one line, without tags."""
    return " ".join(UNREADABLE.sub("", html.unescape(TAGS.sub("", text))).replace("\\N", " ").split())
