"""Documents as a reader process has them: the one that was read last stays open, for its next page."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from clip_retrieval.blobs import BlobRef, read_blob
from clip_retrieval.errors import ImageError
from clip_retrieval.media.pages import PageRef
from clip_retrieval.media.pdf import Document

DIGEST_BYTES = 16


def digest_bytes(data: bytes) -> bytes:
    """Return the bytes that the ledger knows a file's content by."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def digest_page(document: bytes, page: int) -> bytes:
    """Return the digest of a page by that of its document: pages of one file differ, equal files have equal pages."""
    return digest_bytes(document + str(page).encode())


@dataclass(frozen=True)
class Opened:
    """A document, or what is wrong with it, which holds for each of its pages."""

    ref: PageRef
    digest: bytes
    document: Document | ImageError


class Documents:
    """Opens documents; memory holds one, and its bytes."""

    def __init__(self) -> None:
        self.last: Opened | None = None

    def open(self, ref: PageRef) -> Opened:
        """Return the document of a page; raises OSError where it cannot be read."""
        if self.last is None or self.last.ref != ref._replace(page=self.last.ref.page):
            self.close()
            data = read_blob(BlobRef(ref.url))
            document: Document | ImageError
            try:
                document = Document(data)
            except ImageError as error:
                document = error
            self.last = Opened(ref, digest_bytes(data), document)
        return self.last

    def close(self) -> None:
        last, self.last = self.last, None
        if last is not None and isinstance(last.document, Document):
            last.document.close()
