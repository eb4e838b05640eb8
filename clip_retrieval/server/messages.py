"""Requests, responses and errors of the server: only what ASGI needs, since a framework costs more than a search."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import msgspec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

SLASHES = re.compile("/{2,}")
HALF_A_PAIR = re.compile(  # single escapes of a UTF-16 pair
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
JSON, TEXT, HTML = b"application/json", b"text/plain; charset=utf-8", b"text/html; charset=utf-8"
SECONDS_FOR_A_BODY = 20.0  # from the first byte to the last
LOOKED_AFTER = 0.05  # seconds into a request after which a hang-up ends it


class HttpError(Exception):
    """An error as an answer; the message is shown to the client."""

    def __init__(self, status: int, message: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class GoneError(Exception):
    """The client has hung up, so no answer is needed."""


class StaleError(Exception):
    """A request was begun with a build that is gone, or names one that is not open here.

    `refresh` finds the newer one; then the request is tried once more.
    """

    def __init__(self, refresh: Callable[[], Awaitable[None]]) -> None:
        super().__init__("the index was rebuilt meanwhile")
        self.refresh = refresh


@dataclass(frozen=True)
class Response:
    """An answer."""

    body: bytes
    content_type: bytes = JSON
    status: int = HTTPStatus.OK
    headers: tuple[Header, ...] = field(default=())
    stream: Stream | None = None  # sent instead of the body


@dataclass(frozen=True)
class Stream:
    """A body that is not held in memory."""

    size: int
    pieces: AsyncIterator[bytes]


class TimeLimit:
    """Raises TimeoutError in the task that enters it after this time; costs a third of asyncio.timeout."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.is_over = seconds, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.timer = asyncio.get_running_loop().call_later(self.seconds, self.expire)

    def expire(self) -> None:
        self.is_over = True
        self.task.cancel()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.timer.cancel()
        if self.is_over and kind is asyncio.CancelledError:
            self.task.uncancel()
            raise TimeoutError


class Request:
    """One request; its body is read on demand."""

    __slots__ = ("is_retried", "method", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope, self.receive = scope, receive
        self.method: str = scope["method"]
        self.path: str = scope["path"] if "//" not in scope["path"] else SLASHES.sub("/", scope["path"])
        self.is_retried = False  # after a StaleError

    def header(self, name: bytes) -> bytes | None:
        """Return a header by its name in lower case; the first if there are several."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    @property
    def parameters(self) -> dict[str, str]:
        """Return the query string's values by name; the last if there are several."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True, max_num_fields=32).items()}

    async def body(self, most_bytes: int) -> bytes:
        """Return the whole body; raises HttpError if it is too large or too slow, GoneError if it breaks off."""
        said = self.header(b"content-length")
        if said is not None and (not said.isdigit() or int(said) > most_bytes):
            raise too_large(most_bytes)
        try:
            with TimeLimit(SECONDS_FOR_A_BODY):
                return await self.read_parts(most_bytes)
        except TimeoutError as error:
            raise HttpError(
                HTTPStatus.REQUEST_TIMEOUT, "the body of the request did not arrive in time", CLOSING
            ) from error

    async def read_parts(self, most_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise GoneError
            part = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                raise too_large(most_bytes)
            if not message.get("more_body", False):
                return b"".join([*parts, part]) if parts else part
            parts.append(part)

    async def wait_until_gone(self) -> None:
        """Return when the client hangs up; call it after the body was read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class HangUp:
    """Raises GoneError in the task that enters it when the client hangs up, after the body was read.

    ASGI reports a hang-up only to a task that waits for a message, which costs as much as reading a body. A request
    that is answered within LOOKED_AFTER seconds needs no such task.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.is_gone = request, False
        self.watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.timer = asyncio.get_running_loop().call_later(LOOKED_AFTER, self.look)

    def look(self) -> None:
        self.watcher = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        await self.request.wait_until_gone()
        self.is_gone = True
        self.task.cancel()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.timer.cancel()
        if self.watcher is not None:
            self.watcher.cancel()
        if self.is_gone and kind is asyncio.CancelledError:
            self.task.uncancel()
            raise GoneError from None


CLOSING: tuple[Header, ...] = ((b"connection", b"close"),)  # the rest of the body is not read


def too_large(most_bytes: int) -> HttpError:
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most_bytes:,} bytes (max_body_bytes)", CLOSING
    )


def json_response(value: object, status: int = HTTPStatus.OK, headers: tuple[Header, ...] = ()) -> Response:
    return Response(msgspec.json.encode(value), JSON, status, headers)


def error_response(error: HttpError) -> Response:
    return json_response({"message": error.message}, error.status, error.headers)


def parse_json(body: bytes) -> Any:
    """Return the JSON of a body with any content type; raises HttpError if it is invalid."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not valid JSON: {explain(error, body)}") from error


def explain(error: Exception, body: bytes) -> str:
    if HALF_A_PAIR.search(body):
        return "a string contains half of a surrogate pair, such as \\ud800, which is not a character"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


async def send_response(send: Send, response: Response, more: tuple[Header, ...], *, has_body: bool) -> None:
    """Send a response; `more` are headers of every answer. HEAD gets only the headers."""
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", str(response.stream.size if response.stream else len(response.body)).encode()),
        *response.headers,
        *more,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.stream is not None and has_body:
        async for piece in response.stream.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": response.body if has_body else b""})
