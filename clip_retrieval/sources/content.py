"""What a file is by its first bytes, if it is not of the expected format."""

from __future__ import annotations

import os
import re
import zipfile

from clip_retrieval.blobs import open_raw
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.paths import is_pipe

UNPACK_ADVICE = "unpack it first"
COMPRESSED = "a compressed file without a tar or table inside"
KINDS = (
    (b"PK\x03\x04", "a zip; give --input_format archive"),
    (b"PAR1", "a parquet table; give --input_format parquet, or urls where it holds urls"),
    (b"ARROW1", "an Arrow file; give --input_format datasets, and the folder that it is in"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {UNPACK_ADVICE}"),
    (b"Rar!", f"a RAR archive; {UNPACK_ADVICE}"),
    (b"\xff\xd8\xff", "a picture; give the folder that it is in, and --input_format files"),
    (b"\x89PNG", "a picture; give the folder that it is in, and --input_format files"),
    (b"<!doctype html", "a web page, perhaps a server's error; fetch the file again"),
    (b"<html", "a web page, perhaps a server's error; fetch the file again"),
)
JSON = re.compile(rb"(\xef\xbb\xbf)?\s*(\{|\[\s*\{)\s*[\"}]")
JSON_WORDS = "JSON; a table of urls has one object a line, and a name that ends with .jsonl"
COMPRESSED_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
START_BYTES = 1024
CUT_OFF = "cut off: its end (footer), which says where its rows are, is missing; copy or download it again"


def describe_start(start: bytes) -> str | None:
    """Return what a file with these first bytes is, and what to do with it; None if that is not known."""
    known = next((words for magic, words in KINDS if start[: len(magic)].lower() == magic.lower()), None)
    return describe_pointer(start) or known or (JSON_WORDS if JSON.match(start) else None)


def explain_refusal(url: str, reason: str, detail: str, format_name: str, mark: bytes = b"") -> tuple[str, str]:
    """Return reason and detail of a file that is not `format_name` (`a tar`), although it could be read.

    `mark`: a file of the format begins and ends with it.
    """
    if is_pipe(url):
        return reason, f"not {format_name} ({detail})"
    with open_raw(url) as file:
        start = file.read(START_BYTES)
        if mark and start.startswith(mark):
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(mark), size - len(mark)))
            if file.read() == mark:
                return "corrupt", f"its end (footer), which says where its rows are, is damaged ({detail})"
            return "truncated", CUT_OFF
        known = describe_start(start)
        if known is None and start.startswith(COMPRESSED_MAGICS):
            known = COMPRESSED
        elif known is None and zipfile.is_zipfile(file):
            known = "a program that unpacks itself, which is a zip; give --input_format archive"
    if describe_pointer(start) is not None:
        return "git_lfs_pointer", known or ""
    return reason, f"not {format_name}, but {known}" if known else f"not {format_name} ({detail})"
