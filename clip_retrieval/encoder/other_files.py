"""What lies under the name of a picture and is none, by its first bytes: said in the failure, not acted on."""

from __future__ import annotations

import re

from clip_retrieval.encoder.plugins import read_brands
from clip_retrieval.git_lfs import describe_pointer

LOOKED_AT = 1024  # bytes
STARTS = (  # as formats' own specifications say
    (b"%PDF-", "a PDF"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a file compressed with gzip"),
    (b"FLV\x01", "a video (Flash)"),
    (b"%!PS", "a PostScript drawing, which is a program"),
    (b"8BPS", "a Photoshop file; save it as a picture"),
)
MARKUP = (
    (re.compile(rb"<svg[\s>]", re.IGNORECASE), "an SVG drawing; save it as a picture"),
    (re.compile(rb"<(!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE), "a web page, as servers send for an error"),
)


def describe_other(data: bytes) -> str | None:
    """Return what a file is that no picture format was found in; None where its first bytes do not say."""
    start = data[:LOOKED_AT]
    for magic, name in STARTS:
        if start.startswith(magic):
            return name
    if read_brands(start):
        return "a video (MP4 or QuickTime)"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "a video (AVI)"
    pointer = describe_pointer(start)
    if pointer is not None:
        return pointer
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return next((name for pattern, name in MARKUP if pattern.search(start)), None)
    return None
