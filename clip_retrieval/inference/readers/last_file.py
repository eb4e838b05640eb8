"""The last tar that was read, kept open: its members follow each other, and opening it takes longer than a read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from clip_retrieval.blobs import is_plain, open_url


class LastFile:
    """Opens files one after the other, and keeps the last plain local one open. For one thread."""

    def __init__(self) -> None:
        self.opened: tuple[str, IO[bytes]] | None = None
        self.stack = ExitStack()

    @contextmanager
    def open(self, url: str) -> Iterator[IO[bytes]]:
        """Open a url as `open_url` does."""
        if self.opened is None or self.opened[0] != url:
            self.close()
            with ExitStack() as stack:
                file = stack.enter_context(open_url(url))
                if not is_plain(url, file):
                    yield file
                    return
                self.opened, self.stack = (url, file), stack.pop_all()
        yield self.opened[1]

    def close(self) -> None:
        self.opened = None
        self.stack.close()
