"""Text files in any of the usual encodings: UTF-8 or UTF-16, with or without a byte order mark, compressed or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from clip_retrieval.blobs import open_url

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_text(url: str) -> Iterator[io.TextIOWrapper]:
    """Open a text file; bytes that are not UTF-8 become surrogates (PEP 383)."""
    with open_url(url) as file:
        is_wide = file.read(2) in UTF_16_MARKS
        file.seek(0)
        encoding = "utf-16" if is_wide else "utf-8-sig"
        with io.TextIOWrapper(file, encoding, errors="replace" if is_wide else "surrogateescape", newline="") as text:
            yield text
