"""Pages of documents: how they are named, and references to them. Loads no library."""

from __future__ import annotations

import re
from typing import NamedTuple

from clip_retrieval.installed import is_installed, pip_install

PACKAGE, EXTRA = "pypdfium2", "pdf"
DOCUMENT_SUFFIX = ".pdf"
MOST_PAGES = 100_000  # a damaged or hostile file may claim any number
PAGE_PATH = re.compile(r"(?P<document>.*\.pdf)#page=(?P<page>[1-9]\d{0,8})", re.IGNORECASE | re.DOTALL)


class PageRef(NamedTuple):
    """A page of a document. Size and stamp are those of the listing: a file that changes is another document.

    `page` counts from 1; None for a document whose pages could not be counted, which its reader explains.
    """

    url: str
    page: int | None
    size: int | None
    stamp: str


def can_read_pages() -> bool:
    return is_installed(PACKAGE)


def advice() -> str:
    return f"pages of PDFs are read by a package: {pip_install(PACKAGE, EXTRA)}"


def is_document(path: str) -> bool:
    return path[-len(DOCUMENT_SUFFIX) :].lower() == DOCUMENT_SUFFIX


def page_path(document: str, page: int) -> str:
    """Return a path that browsers open at the page."""
    return f"{document}#page={page}"


def split_page(path: str) -> tuple[str, int] | None:
    """Return document and page of a path that `page_path` made; None for any other path."""
    found = PAGE_PATH.fullmatch(path) if "#page=" in path else None
    return None if found is None else (found["document"], int(found["page"]))


def in_page_order(path: str) -> tuple[str, int]:
    """Return the sort key of a path: page 10 comes after page 2."""
    return split_page(path) or (path, 0)
