"""uvicorn's HTTP protocol, with refusals before a request has a task, and a callback when a connection ends.

The overridden members of uvicorn are undocumented; those for httptools are the same from 0.30 to 0.54.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import unquote

from clip_retrieval.installed import is_installed
from clip_retrieval.server.admission import SECONDS_HELD, Admission
from clip_retrieval.server.app import App
from clip_retrieval.server.messages import Header, Request, Response

SECONDS_TOGETHER = 0.01  # refusals that are due within this are sent at once


class Nothing(bytearray):
    """A body that is dropped as it arrives."""

    def __iadd__(self, data: object) -> Self:
        return self


class Refused:
    """What uvicorn reads of a request, instead of its cycle."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.keep_alive = self.more_body = True
        self.response_complete = self.disconnected = False
        self.message_event = NOBODY_WAITS
        self.body = NOTHING


NOTHING, NOBODY_WAITS = Nothing(), asyncio.Event()


class Refusals:
    """Refusals that are held and sent together, with one timer for all."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.waiting: deque[tuple[float, Refusing, Refused]] = deque()  # first the time when it is due

    def hold(self, connection: Refusing, refused: Refused) -> None:
        self.admission.held += 1
        self.waiting.append((connection.loop.time() + SECONDS_HELD, connection, refused))
        if len(self.waiting) == 1:
            connection.loop.call_later(SECONDS_HELD, self.send_due, connection.loop)

    def send_due(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time() + SECONDS_TOGETHER
        while self.waiting and self.waiting[0][0] <= now:
            self.admission.held -= 1
            _, connection, refused = self.waiting.popleft()
            connection.send_refusal(refused)
        if self.waiting:
            loop.call_later(self.waiting[0][0] - loop.time(), self.send_due, loop)


class Telling:
    """Comes before uvicorn's protocol: reports when a connection has ended."""

    on_end: Callable[[], None] | None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        if self.on_end is not None:
            self.on_end()


class Refusing:
    """Comes before uvicorn's protocol for httptools: refuses a request after its headers if there is no room.

    A connection has one timer, which checks when it was last used. uvicorn starts one with each answer, which takes as
    long as the rest of a refusal. With h11 instead of httptools, this class is not used.
    """

    served: App
    refusals: Refusals
    parser: Any
    cycle: Any
    url: bytes
    headers: list[Header]
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    timeout_keep_alive: float
    timeout_keep_alive_task: asyncio.TimerHandle | None
    idle_since = 0.0

    def on_headers_complete(self) -> None:
        if self.is_idle and not self.served.admission.has_room() and not self.parser.should_upgrade():
            response = self.served.refuse(Request(self.scope_of_headers(), nothing))
            if response is not None:
                self.refuse(response)
                return
        super().on_headers_complete()  # type: ignore[misc]

    @property
    def is_idle(self) -> bool:
        """Say whether every request of this connection has its answer."""
        return self.cycle is None or self.cycle.response_complete

    def scope_of_headers(self) -> dict[str, Any]:
        """Return what a refusal needs of the request, in the form of uvicorn's scope."""
        path = import_httptools().parse_url(self.url).path.decode("ascii")
        return {"method": self.parser.get_method().decode("ascii"), "path": unquote(path), "headers": self.headers}

    def refuse(self, response: Response) -> None:
        self.cycle = refused = Refused(response)
        refused.keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            self.refusals.hold(self, refused)
        else:
            self.send_refusal(refused)

    def send_refusal(self, refused: Refused) -> None:
        """Send a refusal; later requests on the connection wait in uvicorn's pipeline."""
        if self.transport.is_closing():
            return
        state: Any = self
        closing = () if refused.keep_alive else ((b"connection", b"close"),)
        self.transport.write(render(refused.response, (*state.server_state.default_headers, *closing)))
        refused.response_complete = True
        if not refused.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        state: Any = self
        if state.pipeline or self.transport.is_closing():
            super().on_response_complete()  # type: ignore[misc]
            return
        state.server_state.total_requests += 1
        state.flow.resume_reading()
        self.idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.look_after(self.timeout_keep_alive)

    def look_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if not self.is_idle:
            return  # its answer starts the timer
        left = self.idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.look_after(left)
        elif not self.transport.is_closing():
            self.transport.close()

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer; uvicorn calls this whenever data arrives."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()


def protocol_of(app: App, on_end: Callable[[], None] | None = None) -> type[asyncio.Protocol]:
    """Return the protocol for an application; `on_end` is called when a connection has ended."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    parts = (Telling, Refusing) if is_installed("httptools") else (Telling,)
    told = None if on_end is None else staticmethod(on_end)
    return type(
        "Protocol", (*parts, AutoHTTPProtocol), {"served": app, "on_end": told, "refusals": Refusals(app.admission)}
    )


@cache
def import_httptools() -> Any:
    import httptools

    return httptools


@lru_cache(64)  # most refusals within a second are equal
def render(response: Response, more: tuple[Header, ...]) -> bytes:
    """Return the bytes of an answer."""
    status = HTTPStatus(response.status)
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", str(len(response.body)).encode()),
        *response.headers,
        *more,
    ]
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join([*lines, b"", response.body])


async def nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}
