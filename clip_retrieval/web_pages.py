"""Pages of one file, which front/ builds: title, plain text for browsers without scripts, and data are put in."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

HEAD_BYTES = 2048
MARKS = ("@title@", "@plain@", "@data@")  # in this order in every page


def fill_page(name: str, title: str, plain: str, data: Iterable[str]) -> Iterator[str]:
    """Yield the parts of a page; `plain` is HTML, `data` the pieces of a JSON text without any `<`."""
    left = Path(__file__).with_name("pages").joinpath(f"{name}.html").read_text(encoding="utf-8")
    for mark, parts in zip(MARKS, ([html.escape(title)], [plain], data), strict=True):
        before, _, left = left.partition(mark)
        yield before
        yield from parts
    yield left


def is_page(name: str, page: bytes) -> bool:
    """Say whether a file, given its first HEAD_BYTES, is such a page: an element of its head names what wrote it."""
    return f'<meta name="generator" content="clip-retrieval {name}"'.encode() in page[:HEAD_BYTES]


def script_json(value: object) -> str:
    """Return a value as JSON that may stand in a script element: ASCII, and no `<` that could end the element."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
