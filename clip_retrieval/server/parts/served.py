"""An index in parts by its name: found when the server starts, and again when a part is rebuilt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from clip_retrieval.errors import ConfigError
from clip_retrieval.server.asking import Asker
from clip_retrieval.server.named import NamedIndex
from clip_retrieval.server.parts.build import PartedBuild
from clip_retrieval.server.parts.connections import Connections, LostError, Reply, ask, check_installed, open_session
from clip_retrieval.server.parts.embedder import Embedder
from clip_retrieval.server.parts.exchange import Exchange
from clip_retrieval.server.parts.figures import Figures, PartMetrics
from clip_retrieval.server.parts.layout import About, Layout, NotAPartError, find_difference, read_about
from clip_retrieval.server.parts.link import Link, Place, read_message

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE = 0.5  # seconds between two checks for parts that have not appeared yet


class NotThereError(Exception):
    """A part does not answer."""


class ServedParts:
    """An index in parts; `current` has its parts as of the last check."""

    def __init__(self, index: NamedIndex, asker: Asker, connections: Connections, metrics: PartMetrics) -> None:
        check_installed()
        self.index, self.asker, self.connections = index, asker, connections
        figures = Figures(metrics, index.name)
        places = [Place.of(address) for address in index.parts]
        self.links = tuple(Link(place, number, connections, figures) for number, place in enumerate(places, start=1))
        self.embedder = Embedder(index.name, self.links)
        self.current = self.build(self.wait_for_all(connections.config.parted.part_wait))
        for link in self.links:
            figures.set_up(link.number, is_up=True)

    def build(self, abouts: Sequence[About]) -> PartedBuild:
        exchange = Exchange(Layout(self.index.name, tuple(abouts)), self.links, self.refresh)
        return PartedBuild(exchange, self.embedder, self.asker, self.index.config.columns_to_return)

    def wait_for_all(self, seconds: float) -> list[About]:
        """Return the descriptions of all parts, once all answer. Raises ConfigError if one does not, or is wrong."""
        end, told = time.monotonic() + seconds, set[str]()
        while True:
            found = run_apart(self.describe_apart())
            absent = [
                (link, one) for link, one in zip(self.links, found, strict=True) if isinstance(one, NotThereError)
            ]
            if not absent:
                break
            if time.monotonic() > end:
                link, problem = absent[0]
                raise ConfigError(
                    f"{link.place.url}, {link.name} of {self.index.name}, does not answer ({problem}); start "
                    "`clip-retrieval back` there first: without it the ids of later parts are unknown"
                )
            for link, problem in absent:
                if link.place.url not in told:
                    logger.warning("waiting for %s: %s", link.place.url, problem)
                    told.add(link.place.url)
            time.sleep(PAUSE)
        return self.check(found)

    def check(self, found: Sequence[About | Exception]) -> list[About]:
        """Return the descriptions of all parts. Raises ConfigError if one cannot be a part of the same index."""
        abouts: list[About] = []
        for link, one in zip(self.links, found, strict=True):
            if isinstance(one, About):
                wrong = find_difference(one, abouts[0] if abouts else one)
                abouts.append(one)
            else:
                wrong = str(one)
            if wrong is not None:
                raise ConfigError(f"{link.place.url} cannot be {link.name} of {self.index.name}: it {wrong}")
        return abouts

    def look(self) -> bool:
        """Ask all parts for their current state, from any thread; return whether ids may mean other rows."""
        return self.take(run_apart(self.describe_apart()))

    async def refresh(self) -> None:
        """Ask all parts for their current state, in the event loop."""
        self.take(await asyncio.gather(*[self.describe(link, self.connections.ask) for link in self.links]))

    async def describe_apart(self) -> list[About | Exception]:
        """Ask all parts over new connections, in an event loop of its own."""
        async with open_session(self.connections.config) as session:

            async def send(method: str, url: str) -> Reply:
                return await ask(session, method, url, None)

            return list(await asyncio.gather(*[self.describe(link, send) for link in self.links]))

    async def describe(self, link: Link, send: Any) -> About | Exception:
        """Return a part's description; NotThereError if it does not answer, NotAPartError if it cannot be a part."""
        try:
            async with asyncio.timeout(link.seconds):
                reply = await send("GET", f"{link.place.url}/v1/indices")
        except TimeoutError:
            return NotThereError(f"no answer within {link.seconds:g} s")
        except LostError as error:
            return NotThereError(str(error))
        if reply.status >= 500 or reply.status == 429:
            return NotThereError(f"it answers {reply.status}: {read_message(reply)}")
        if reply.status != 200:
            return NotAPartError(f"answers {reply.status}: {read_message(reply)}")
        try:
            return read_about(reply.body, link.place.index)
        except NotAPartError as error:
            return error

    def take(self, found: Sequence[About | Exception]) -> bool:
        """Replace the state of the parts by the current one; refuse a part that can no longer be one.

        A part that does not answer keeps its state. If all parts now have another model, the index is a new one; if
        only some do, these are left out.
        """
        old = self.current.exchange.layout.parts
        listed = [one if isinstance(one, About) else before for one, before in zip(found, old, strict=True)]
        is_alike = all(find_difference(one, listed[0]) is None for one in listed)
        for link, one in zip(self.links, found, strict=True):
            link.figures.set_up(link.number, is_up=not isinstance(one, NotThereError))
            if isinstance(one, NotThereError):
                continue
            link.answers()
            if not isinstance(one, About):
                self.refuse(link, str(one))
            else:
                self.refuse(link, None if is_alike else find_difference(one, old[0]))
        kept = [
            before if link.refusal is not None else one
            for link, one, before in zip(self.links, listed, old, strict=True)
        ]
        if kept == list(old):
            return False
        before, self.current = self.current, self.build(kept)
        is_new = before.id != self.current.id
        if is_new:
            logger.info("%s: a part was rebuilt, generation %s", self.index.name, self.current.id)
        return is_new

    def refuse(self, link: Link, problem: str | None) -> None:
        """Leave out a part that has become another index, or include it again."""
        refusal = None if problem is None else f"it {problem}"
        if refusal != link.refusal and refusal is not None:
            logger.warning("%s is no longer %s of %s: %s", link.place.url, link.name, self.index.name, refusal)
        link.refusal = refusal


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in its own event loop, even if the caller's thread runs one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
