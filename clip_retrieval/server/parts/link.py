"""One part of an index over HTTP: a time limit, a retry if the connection broke, no waiting for dead servers."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import msgspec

from clip_retrieval.errors import one_line
from clip_retrieval.server.messages import Header, HttpError, TimeLimit
from clip_retrieval.server.parts.connections import Connections, LostError, Reply, Span
from clip_retrieval.server.parts.figures import Figures

logger = logging.getLogger(__name__)

SECONDS_OF_A_CHECK = 2.0  # for a part that did not answer in time to show that it lives
PAUSE = 1.0  # seconds between two checks
PASSED_ON = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


class UnansweredError(Exception):
    """A part has no answer; the message names no address, since clients may see it."""


class RebuiltError(Exception):
    """A part has a newer build than the requested one."""


@dataclass(frozen=True)
class Call:
    """A request to a part."""

    method: str
    path: str
    body: bytes | None = None
    may_be_absent: bool = False  # 404 is an answer
    span: Span | None = None  # of the bytes of the answer


@dataclass(frozen=True)
class Place:
    """Where a part is: a server, and the index there; None: its first."""

    url: str
    index: str | None

    @staticmethod
    def of(address: str) -> Place:
        """Read `http://host:port/prefix?index=name`."""
        url, _, query = address.partition("?")
        return Place(url.rstrip("/"), parse_qs(query).get("index", [None])[0])


class Link:
    """A part of an index, and whether it answers."""

    def __init__(self, place: Place, number: int, connections: Connections, figures: Figures) -> None:
        self.place, self.number, self.connections, self.figures = place, number, connections, figures
        self.seconds = connections.config.parted.part_timeout
        self.problem: str | None = None  # why the last request had no answer
        self.refusal: str | None = None  # why a part that answers is not asked
        self.is_down = False  # it is not asked until a check finds it alive
        self.checked_at = float("-inf")

    @property
    def name(self) -> str:
        return f"part {self.number}"

    async def ask(self, call: Call) -> Reply:
        """Return the answer. Raises UnansweredError, RebuiltError, and HttpError for errors that clients must see."""
        if self.refusal is not None:
            raise UnansweredError(self.refusal)
        if self.is_down:
            self.check_again()
            raise UnansweredError(f"it did not answer within {self.seconds:g} s before")
        start = time.perf_counter()
        try:
            with TimeLimit(self.seconds):
                reply = await self.send(call)
        except TimeoutError:
            self.figures.count(self.number, "timeout", time.perf_counter() - start)
            self.is_down = True
            self.check_again()
            raise self.unanswered(f"no answer within {self.seconds:g} s") from None
        except LostError as error:
            self.figures.count(self.number, "lost", time.perf_counter() - start)
            raise self.unanswered("it cannot be reached", str(error)) from error
        self.figures.count(self.number, str(reply.status), time.perf_counter() - start)
        return self.read(call, reply)

    async def send(self, call: Call) -> Reply:
        """Send a request; retry once if the connection broke, since it may have been an old one. Raises LostError."""
        url = self.place.url + call.path
        try:
            return await self.connections.ask(call.method, url, call.body, call.span)
        except LostError:
            self.figures.count_retry(self.number)
            return await self.connections.ask(call.method, url, call.body, call.span)

    def read(self, call: Call, reply: Reply) -> Reply:
        """Return a successful answer. Raises an error for others."""
        status = reply.status
        is_piece = status == HTTPStatus.PARTIAL_CONTENT and call.span is not None
        if status == HTTPStatus.OK or is_piece or (status == HTTPStatus.NOT_FOUND and call.may_be_absent):
            self.answers()
            return reply
        if status == HTTPStatus.CONFLICT:
            raise RebuiltError(self.name)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            after: Header = (b"retry-after", reply.headers.get("retry-after", "1").encode("latin-1"))
            raise HttpError(status, f"{self.name} of the index is too busy; try again in a second", (after,))
        if status in PASSED_ON:
            raise HttpError(status, read_message(reply))
        raise self.unanswered(f"it answers {status}: {read_message(reply)}")

    def unanswered(self, problem: str, detail: str = "") -> UnansweredError:
        """Return the error, and log only the first of consecutive ones."""
        if self.problem is None:
            logger.warning("%s does not answer (%s); its rows are left out", self.place.url, detail or problem)
        self.problem = problem
        return UnansweredError(problem)

    def answers(self) -> None:
        if self.problem is not None:
            logger.info("%s answers again", self.place.url)
        self.problem, self.is_down = None, False

    def check_again(self) -> None:
        """Check in the background, and not too often, whether the part is alive."""
        if time.monotonic() - self.checked_at > PAUSE:
            self.checked_at = time.monotonic()
            self.connections.spawn(self.check())

    async def check(self) -> None:
        try:
            with TimeLimit(SECONDS_OF_A_CHECK):
                reply = await self.connections.ask("GET", f"{self.place.url}/indices-list")
        except (TimeoutError, LostError):
            return
        if reply.status == HTTPStatus.OK:
            self.answers()


def read_message(reply: Reply) -> str:
    """Return the sentence of an error."""
    said: Any = None
    with suppress(msgspec.DecodeError):
        said = msgspec.json.decode(reply.body)
    message = said.get("message") if isinstance(said, dict) else None
    return one_line(message)[:500] if isinstance(message, str) else "it is not a server of clip-retrieval"
