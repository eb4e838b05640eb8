"""The ASGI application: finds what answers a path, and keeps out what is too much, not allowed, or from nowhere."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from clip_retrieval.server.config import AccessConfig, LimitsConfig
from clip_retrieval.server.lanes import too_busy
from clip_retrieval.server.messages import (
    JSON,
    GoneError,
    Header,
    HttpError,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    TimeLimit,
    error_response,
    parse_json,
    send_response,
)
from clip_retrieval.server.metrics import Metrics

logger = logging.getLogger(__name__)

Handler = Callable[[Request, Any], Awaitable[Response]]

SLASHES = re.compile("/{2,}")
OPTION = re.compile(r"--(?=\w)")
# Enough for JSON: uvicorn takes some microseconds for each header.
NOSNIFF: Header = (b"x-content-type-options", b"nosniff")
PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, index-generation, x-api-key"),
    (b"access-control-max-age", b"600"),
)
STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (QueryError, HTTPStatus.BAD_REQUEST),
    (ConfigError, HTTPStatus.BAD_REQUEST),
    (ImageError, HTTPStatus.BAD_REQUEST),
    (EncoderError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageError, HTTPStatus.SERVICE_UNAVAILABLE),
)


@dataclass(frozen=True, kw_only=True)
class Route:
    """What answers a method and path; `is_open` needs no key, a POST counts among the requests in work."""

    handler: Handler
    is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Routes by path and method, those of longer paths by their beginning, and the files of a front for all else."""

    exact: Mapping[str, Mapping[str, Route]]
    beginnings: Mapping[str, Mapping[str, Route]]
    files: Callable[[Request], Response]
    page_headers: tuple[Header, ...] = ()  # of what is no JSON
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


def page_headers(backend: str | None) -> tuple[Header, ...]:
    """Return the headers that keep our pages to this server, and to the backend that they ask where it is another.

    Pictures may come from anywhere: hits have urls. `blob:` is for pictures that are fetched with a key.
    """
    found = re.match(r"https?://[\w.:\[\]-]+", backend or "")
    asked = f"'self' {found[0]}" if found else "'self'"
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob: https: http:; "
        f"font-src 'self'; connect-src {asked}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
        f"require-trusted-types-for 'script'"
    )
    return ((b"referrer-policy", b"no-referrer"), (b"content-security-policy", policy.encode()))


class App:
    """One server's ASGI application."""

    def __init__(self, routes: Routes, access: Access, limits: LimitsConfig, metrics: Metrics) -> None:
        self.routes, self.access, self.limits, self.metrics = routes, access, limits, metrics
        self.in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if "//" in scope["path"]:
            scope["path"] = SLASHES.sub("/", scope["path"])
        request = Request(scope, receive)
        try:
            name, response = await self.respond(request)
            headers = (NOSNIFF, *self.access.headers(request))
            if response.content_type != JSON and (name != "files" or self.routes.is_our_front):
                headers = (*headers, *self.routes.page_headers)
            self.metrics.count(name, int(response.status))
            await send_response(send, response, headers, has_body=request.method != "HEAD")
        except GoneError:
            self.metrics.gone.inc()

    async def respond(self, request: Request) -> tuple[str, Response]:
        """Return the route's name and its answer; every error is an answer, except that nobody waits for one."""
        name = "none"
        try:
            self.access.check_host(request)
            if request.method == "OPTIONS":
                return name, self.access.preflight()
            name, route = self.routes.find(request)
            if route is None:
                return name, self.routes.files(request)
            if not route.is_open:
                self.access.check_key(request)
            return name, await (
                self.take(route, request) if request.method == "POST" else self.work(route, request, None)
            )
        except GoneError:
            raise
        except Exception as error:  # becomes an answer; bugs are logged  # noqa: BLE001
            return name, error_response(translate(error))

    async def take(self, route: Route, request: Request) -> Response:
        """Read and answer a request with a body; one too many is refused before its body is read."""
        if self.in_work >= self.limits.max_waiting:
            raise too_busy()
        self.in_work += 1
        try:
            return await self.work(route, request, parse_json(await request.body(self.limits.max_body_bytes)))
        finally:
            self.in_work -= 1

    async def work(self, route: Route, request: Request, said: Any) -> Response:
        """Answer in time; stop where the client hangs up."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(cancel_when_gone(request, task))
        try:
            with TimeLimit(self.limits.request_timeout):
                return await route.handler(request, said)
        except TimeoutError:
            said = f"the answer took longer than {self.limits.request_timeout:g} s (request_timeout)"
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, said) from None
        except asyncio.CancelledError:
            if not watcher.done():
                raise
            task.uncancel()
            raise GoneError from None
        finally:
            watcher.cancel()


async def cancel_when_gone(request: Request, task: asyncio.Task[Any]) -> None:
    await request.wait_until_gone()
    task.cancel()


class Access:
    """Who may ask: names of this server, origins of web pages, keys."""

    def __init__(self, config: AccessConfig, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.origins = frozenset(origin.rstrip("/").encode() for origin in config.cors)
        self.hosts = frozenset(name.lower() for name in config.allowed_hosts)
        self.is_local = is_loopback(config.host)

    def check_host(self, request: Request) -> None:
        """Refuse names that a web page of strangers may have given this machine (DNS rebinding)."""
        if not self.hosts and not self.is_local:
            return
        host = host_name((request.header(b"host") or b"").decode("latin-1"))
        if host not in self.hosts and not (self.is_local and (is_loopback(host) or is_address(host) or not host)):
            raise HttpError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server does not answer to {host[:100]!r}; it would if started with --allowed_hosts",
            )

    def check_key(self, request: Request) -> None:
        """Refuse a request without one of the keys; the time that takes says nothing of them."""
        if not self.keys:
            return
        given = request.header(b"x-api-key")
        if given is None:
            scheme, _, given = (request.header(b"authorization") or b"").partition(b" ")
            given = given.strip() if scheme.lower() == b"bearer" else b""
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        if not any(matches):
            raise HttpError(
                HTTPStatus.UNAUTHORIZED,
                "this server wants a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                ((b"www-authenticate", b"Bearer"),),
            )

    def headers(self, request: Request) -> tuple[Header, ...]:
        """Return the headers that let pages of other origins read an answer, or keep them from it."""
        if not self.origins:
            return ((b"cross-origin-resource-policy", b"same-origin"),)
        if b"*" in self.origins:
            return ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"index-generation"))
        origin = request.header(b"origin")
        vary = ((b"vary", b"Origin"),)
        if origin is None or origin not in self.origins:
            return vary
        return (
            *vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"index-generation"),
        )

    def preflight(self) -> Response:
        if not self.origins:
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "pages of other origins may not ask this server; they could if it were started with --cors",
            )
        return Response(b"", status=HTTPStatus.NO_CONTENT, headers=PREFLIGHT)


def host_name(host: str) -> str:
    """Return a Host header without its port, in small letters."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback


def translate(error: Exception) -> HttpError:
    """Return an error as an answer: what a request can cause is told, what it cannot is logged."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, FetchError):
        is_forbidden = error.reason == "forbidden_address"  # the message would tell addresses of the local network
        said = "it is at no public address" if is_forbidden else str(error)
        return HttpError(HTTPStatus.BAD_REQUEST, f"the picture could not be fetched: {said}")
    for kind, status in STATUS:
        if isinstance(error, kind):
            return HttpError(status, OPTION.sub("", str(error)))
    if isinstance(error, OSError) and not isinstance(error, ClipRetrievalError):
        logger.error("a request failed: %s", describe_os_error(error))
        return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "a file of the index cannot be read")
    logger.error("a request failed", exc_info=error)
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error")
