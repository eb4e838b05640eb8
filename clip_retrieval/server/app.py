"""The ASGI application: finds the endpoint of a path, and refuses what is too much, forbidden or unknown."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from clip_retrieval.errors import (
    ClipRetrievalError,
    ConfigError,
    EncoderError,
    ImageError,
    QueryError,
    StorageError,
    describe_os_error,
)
from clip_retrieval.network.connections import FetchError
from clip_retrieval.server.access import Access
from clip_retrieval.server.admission import Admission, Busy
from clip_retrieval.server.config import LimitsConfig
from clip_retrieval.server.lanes import RETRY_AFTER, too_busy
from clip_retrieval.server.messages import (
    JSON,
    GoneError,
    HangUp,
    Header,
    HttpError,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    StaleError,
    TimeLimit,
    error_response,
    parse_json,
    send_response,
)
from clip_retrieval.server.metrics import Metrics

logger = logging.getLogger(__name__)

Handler = Callable[[Request, Any], Awaitable[Response]]
ShutDown = Callable[[], Awaitable[None]]

OPTION = re.compile(r"--(?=\w)")
# Enough for JSON: uvicorn takes some microseconds for each header.
NOSNIFF: Header = (b"x-content-type-options", b"nosniff")
STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (QueryError, HTTPStatus.BAD_REQUEST),
    (ConfigError, HTTPStatus.BAD_REQUEST),
    (ImageError, HTTPStatus.BAD_REQUEST),
    (EncoderError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageError, HTTPStatus.SERVICE_UNAVAILABLE),
)


@dataclass(frozen=True, kw_only=True)
class Route:
    """The endpoint of a method and path; `is_open` needs no key, a POST counts among the requests in progress.

    If `is_linked`, a signed link may replace the key.
    """

    handler: Handler
    is_open: bool = False
    is_linked: bool = False


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Routes by path and method (or by the beginning of a path), and the files of a front for all other paths."""

    exact: Mapping[str, Mapping[str, Route]]
    beginnings: Mapping[str, Mapping[str, Route]]
    files: Callable[[Request], Response]
    page_headers: tuple[Header, ...] = ()  # of answers that are not JSON
    is_our_front: bool = True  # its files have these headers too

    def find(self, request: Request) -> tuple[str, Route | None]:
        """Return the route's name for metrics and the route; None for files. Raises HttpError 404 and 405."""
        methods = self.exact.get(request.path)
        name = request.path
        if methods is None:
            name = next((start for start in self.beginnings if request.path.startswith(start)), "")
            methods = self.beginnings.get(name, {})
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is not None:
            return name, route
        if methods or request.method not in ("GET", "HEAD"):
            allowed = ", ".join(methods) or "GET"
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{request.path[:100]} takes {allowed}, not {request.method[:20]}",
                ((b"allow", allowed.encode()),),
            )
        return "files", None


BUSY = error_response(too_busy())


def page_headers(backend: str | None) -> tuple[Header, ...]:
    """Return the headers that restrict our pages to this server, and to their backend if it is another server.

    Pictures may come from anywhere: hits have urls. Videos come from the backend. `blob:` is for pictures that are
    fetched with a key.
    """
    found = re.match(r"https?://[\w.:\[\]-]+", backend or "")
    asked = f"'self' {found[0]}" if found else "'self'"
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob: https: http:; "
        f"font-src 'self'; media-src {asked}; connect-src {asked}; frame-ancestors 'none'; base-uri 'none'; "
        f"form-action 'none'; "
        f"require-trusted-types-for 'script'"
    )
    return ((b"referrer-policy", b"no-referrer"), (b"content-security-policy", policy.encode()))


async def nothing() -> None:
    pass


class App:
    """One server's ASGI application."""

    def __init__(
        self, routes: Routes, access: Access, limits: LimitsConfig, metrics: Metrics, shut_down: ShutDown = nothing
    ) -> None:
        self.routes, self.access, self.limits, self.metrics = routes, access, limits, metrics
        self.shut_down = shut_down  # closes what belongs to the event loop, before the loop ends
        self.begin: Callable[[], None] = lambda: None  # called in the event loop, before there are requests
        self.admission = Admission(limits.max_waiting)

    @property
    def in_work(self) -> int:
        return self.admission.in_work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            name, response = await self.respond(request)
            headers = self.headers(request)
            if response.content_type != JSON and (name != "files" or self.routes.is_our_front):
                headers = (*headers, *self.routes.page_headers)
            self.metrics.count(name, int(response.status))
            await send_response(send, response, headers, has_body=request.method != "HEAD")
        except GoneError:
            self.metrics.gone.inc()

    def headers(self, request: Request) -> tuple[Header, ...]:
        """Return the headers of every answer."""
        return (NOSNIFF, *self.access.headers(request))

    async def live(self, receive: Receive, send: Send) -> None:
        """Begin and end with the event loop, by ASGI's lifespan messages."""
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                self.begin()
            if kind == "lifespan.shutdown":
                await self.shut_down()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def respond(self, request: Request) -> tuple[str, Response]:
        """Return the route's name and its answer; every error becomes an answer, except that of a gone client."""
        name = "none"
        try:
            self.access.check_host(request)
            if request.method == "OPTIONS":
                return name, self.access.preflight(request)
            name, route = self.routes.find(request)
            if route is None:
                return name, self.routes.files(request)
            self.check_key(route, request)
            return name, await (
                self.take(route, request) if request.method == "POST" else self.work(route, request, None)
            )
        except GoneError:
            raise
        except Exception as error:  # becomes an answer; bugs are logged  # noqa: BLE001
            return name, error_response(translate(error))

    def check_key(self, route: Route | None, request: Request) -> None:
        if route is not None and not route.is_open:
            self.access.check_key(request, is_linked=route.is_linked)

    async def take(self, route: Route, request: Request) -> Response:
        """Read and answer a request with a body; if there are too many, refuse it before its body is read."""
        if not self.admission.enter():
            await self.admission.hold()
            raise too_busy()
        try:
            said = parse_json(await request.body(self.limits.max_body_bytes))
            with Busy(self.admission):
                return await self.work(route, request, said)
        finally:
            self.admission.leave()

    def refuse(self, request: Request) -> Response | None:
        """Return the refusal of a POST if there is no room for it, before it has a task; None otherwise.

        Requests without access get that error instead, as from `respond`.
        """
        if request.method != "POST" or self.admission.has_room():
            return None
        name = "none"
        try:
            self.access.check_host(request)
            name, route = self.routes.find(request)
            self.check_key(route, request)
            response = BUSY
        except HttpError as error:
            response = error_response(error)
        self.metrics.count(name, int(response.status))
        headers = (*response.headers, *self.headers(request))
        return Response(response.body, response.content_type, response.status, headers)

    async def work(self, route: Route, request: Request, said: Any) -> Response:
        """Answer in time; stop if the client hangs up."""
        try:
            with HangUp(request), TimeLimit(self.limits.request_timeout):
                try:
                    return await route.handler(request, said)
                except StaleError as error:
                    await error.refresh()
                    request.is_retried = True
                    return await route.handler(request, said)
        except TimeoutError:
            said = f"the answer took longer than {self.limits.request_timeout:g} s (request_timeout)"
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, said) from None


def translate(error: Exception) -> HttpError:
    """Return an error as an answer: errors of requests are shown to the client, other errors are logged."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, StaleError):
        return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}; ask again", RETRY_AFTER)
    if isinstance(error, FetchError):
        is_forbidden = error.reason == "forbidden_address"  # the message would reveal addresses of the local network
        said = "its address is not public" if is_forbidden else str(error)
        return HttpError(HTTPStatus.BAD_REQUEST, f"the picture could not be fetched: {said}")
    for kind, status in STATUS:
        if isinstance(error, kind):
            return HttpError(status, OPTION.sub("", str(error)))
    if isinstance(error, OSError) and not isinstance(error, ClipRetrievalError):
        logger.error("a request failed: %s", describe_os_error(error))
        return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "a file of the index cannot be read")
    logger.error("a request failed", exc_info=error)
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error")
