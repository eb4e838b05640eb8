"""All indices of a server by name: folders that are opened here, or parts on other servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from http import HTTPStatus

from clip_retrieval.server.asking import Asker
from clip_retrieval.server.builds import Build
from clip_retrieval.server.indices import EncoderPool, ServedIndex
from clip_retrieval.server.local import LocalBuild
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.named import NamedIndex
from clip_retrieval.server.parts.connections import Connections
from clip_retrieval.server.parts.figures import PartMetrics
from clip_retrieval.server.parts.served import ServedParts


class Indices:
    """All served indices, by name and in order."""

    def __init__(self, indices: Sequence[NamedIndex], asker: Asker) -> None:
        encoders = EncoderPool()
        self.asker = asker
        self.connections, figures = Connections(asker.config), PartMetrics(asker.metrics)
        self.served: dict[str, ServedIndex | ServedParts] = {
            index.name: ServedParts(index, asker, self.connections, figures)
            if index.parts
            else ServedIndex(index, encoders)
            for index in indices
        }
        self.is_closed = threading.Event()

    def get(self, name: object) -> Build:
        """Return the index of this name, the first one for None. Raises HttpError 404."""
        if name is None:
            return self.build_of(next(iter(self.served.values())))
        if not isinstance(name, str) or name not in self.served:
            there = ", ".join(self.served)
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no index {str(name)[:100]!r}; there are {there}")
        return self.build_of(self.served[name])

    def build_of(self, served: ServedIndex | ServedParts) -> Build:
        return LocalBuild(served.current, self.asker, served) if isinstance(served, ServedIndex) else served.current

    def all(self) -> list[Build]:
        return [self.build_of(served) for served in self.served.values()]

    def watch(self, seconds: float) -> None:
        """Look for new builds every few seconds, in a separate thread, until `close`.

        All processes look at the same moments, so they serve a new build at nearly the same time.
        """

        def run() -> None:
            while not self.is_closed.wait(seconds - time.monotonic() % seconds):
                for served in self.served.values():
                    served.look()

        if seconds > 0:
            threading.Thread(target=run, name="reload", daemon=True).start()

    def close(self) -> None:
        self.is_closed.set()
