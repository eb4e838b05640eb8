"""PDF documents by pypdfium2: how many pages, a page as a picture, its text. Hostile files may kill the process."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import IO, Any

from PIL import Image

from clip_retrieval.blobs import POINTER_BYTES, open_raw
from clip_retrieval.errors import ImageError, one_line
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.media.places import MOST_LETTERS, MOST_PAGES, advice
from clip_retrieval.other_files import LOOKED_AT, describe_start

LARGEST_PAGE = 16_000_000  # pixels of a rendered page; only pages of an extreme shape would have more
PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD of pdfium's fpdfview.h
HYPHEN = re.compile(r"[\ufffe\x02]\s*")  # pdfium's mark of a word that was divided at the end of a line
UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\ufeff\uffff\ud800-\udfff]")
PDFIUM = threading.RLock()  # pdfium is made for one thread at a time

Shape = Callable[[int, int], tuple[int, int]]  # width and height of a page to the least ones to render it at


class Document:
    """An opened PDF; raises ImageError: needs_plugin, empty, encrypted, decode, too_large."""

    def __init__(self, file: bytes | IO[bytes]) -> None:
        try:
            import pypdfium2  # noqa: PLC0415 -- an extra, and 30 ms
        except ImportError as error:
            raise ImageError("needs_plugin", advice("document")) from error
        if file == b"":
            raise ImageError("empty", "the file has no bytes")
        with PDFIUM:
            forget_error(pypdfium2)
            try:
                self.pdf: Any = pypdfium2.PdfDocument(file)
            except Exception as error:  # as of a page, below
                if getattr(error, "err_code", None) == PASSWORD_ERROR:
                    raise ImageError("encrypted", "the PDF opens only with a password") from error
                raise ImageError("decode", explain(file)) from error
            self.count = len(self.pdf)
        self.has_too_many = self.count > MOST_PAGES

    def render(self, page: int | None, shape: Shape) -> Image.Image:
        """Return a page in RGB on white, at least as large as `shape` says for one of its size."""
        with self.page(page) as opened:
            width, height = opened.get_size()
            if not (width > 0 and height > 0 and math.isfinite(width * height)):
                raise ImageError("decode", "the page has no area")
            across, down = shape(max(1, math.ceil(width)), max(1, math.ceil(height)))
            scale = max(across / width, down / height)
            if width * height * scale * scale > LARGEST_PAGE:
                raise ImageError("too_large", f"a page of {width:.0f} x {height:.0f} points is too long and narrow")
            image: Image.Image = opened.render(scale=scale, rev_byteorder=True).to_pil().convert("RGB").copy()
            return image

    def text(self, page: int | None) -> str:
        """Return the text of a page in one line, of MOST_LETTERS at most; empty if it has none."""
        with self.page(page) as opened, closing(opened.get_textpage()) as words:
            # surrogate pairs count as one letter or two; what is cut off is beyond what models read
            return tidy(words.get_text_range(0, min(words.count_chars(), 2 * MOST_LETTERS)))

    @contextmanager
    def page(self, page: int | None) -> Iterator[Any]:
        """Open a page for a while; errors of the library become ImageError."""
        if self.has_too_many:
            raise ImageError("too_large", f"the PDF claims {self.count:,} pages, more than {MOST_PAGES:,}")
        if not self.count:
            raise ImageError("decode", "the PDF has no pages")
        if page is None:
            raise ImageError("decode", "the pages of the PDF could not be counted")
        if page > self.count:
            raise ImageError("decode", f"the PDF has {self.count:,} pages by now")
        with PDFIUM:
            try:
                with closing(self.pdf[page - 1]) as opened:
                    yield opened
            except ImageError:
                raise
            except Exception as error:  # broken bytes may make the library raise anything
                raise ImageError("decode", f"the page cannot be read: {one_line(error)}") from error

    def close(self) -> None:
        with PDFIUM:
            self.pdf.close()


def explain(file: bytes | IO[bytes]) -> str:
    """Return what is wrong with a file that cannot be opened as a PDF."""
    start = file[:LOOKED_AT] if isinstance(file, bytes) else b""
    if not isinstance(file, bytes):
        with suppress(OSError, ValueError):
            file.seek(0)
            start = file.read(LOOKED_AT)
    other = describe_start(start)
    is_other = other is not None and other != "a PDF"
    return f"is no PDF: it is {other}" if is_other else "is no PDF, or damaged beyond its list of pages"


def forget_error(pypdfium2: Any) -> None:
    """Reset pdfium's last error to "not a PDF": for some files it sets none, and that of another file would stay."""
    pypdfium2.raw.FPDF_LoadMemDocument(b"-", 1, None)


def tidy(text: str) -> str:
    """Return the text of a page as a caption: divided words joined, white space as single spaces."""
    return " ".join(UNREADABLE.sub("", HYPHEN.sub("", text)).split())[:MOST_LETTERS].rstrip()


def count_pages(url: str) -> int:
    """Return how many pages a file has, by its list of pages alone; 0 if it claims an implausible number.

    Raises ImageError or OSError.
    """
    with open_raw(url) as file:
        pointer = describe_pointer(file.read(POINTER_BYTES))
        if pointer is not None:
            raise ImageError("git_lfs_pointer", pointer)
        file.seek(0)
        with closing(Document(file)) as document:
            return 0 if document.has_too_many else document.count


def picture_of_page(url: str, page: int, side: int) -> bytes:
    """Return a page as a PNG whose longer side has so many pixels; raises ImageError or OSError."""
    with open_raw(url) as opened, closing(Document(opened)) as document:
        image = document.render(page, lambda width, height: longest(width, height, side))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def longest(width: int, height: int, side: int) -> tuple[int, int]:
    scale = side / max(width, height)
    return max(1, int(width * scale)), max(1, int(height * scale))
