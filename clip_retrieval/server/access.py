"""Access to a server: names of this machine, origins of web pages, keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus

from clip_retrieval.server.config import AccessConfig
from clip_retrieval.server.messages import Header, HttpError, Request, Response

METHODS = b"GET, HEAD, POST, OPTIONS"  # browsers send HEAD without asking
PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, index-generation, x-api-key"),
    (b"access-control-max-age", b"600"),
)
KEPT_NAMES = 64  # of hosts: parsing an address takes 10 us, and a client always sends the same
DIGITS_OF_A_TIME = 12
LONGEST_LINK = 24 * 3600  # seconds that a signed link may be valid
KEY_WANTED = "this server requires a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`"
BADLY_SIGNED = (
    "the signature of this link is wrong: it is the HMAC-SHA256 in hex, with a key of this server, of the path "
    "(not percent-encoded), a line end and `expires`, in seconds since 1970"
)
EXPOSED: Header = (b"access-control-expose-headers", b"index-generation, index-partial")


class Access:
    """The rules of access: names of this server, origins of web pages, keys."""

    def __init__(self, config: AccessConfig, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.origins = frozenset(origin.rstrip("/").encode() for origin in config.cors)
        self.hosts = frozenset(name.lower() for name in config.allowed_hosts)
        self.is_local = is_loopback(config.host)

    def check_host(self, request: Request) -> None:
        """Refuse names that a foreign web page may have given this machine (DNS rebinding)."""
        if not self.hosts and not self.is_local:
            return
        host = host_name((request.header(b"host") or b"").decode("latin-1"))
        if host not in self.hosts and not (self.is_local and (is_loopback(host) or is_address(host) or not host)):
            raise HttpError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server does not accept the name {host[:100]!r}; start it with --allowed_hosts to allow it",
            )

    def check_key(self, request: Request, *, is_linked: bool = False) -> None:
        """Refuse a request without one of the keys; the time it takes reveals nothing about the keys.

        Players and other programs that open a link send no header, so if `is_linked`, the link may be signed instead.
        """
        if not self.keys or (is_linked and self.is_signed(request)):
            return
        given = request.header(b"x-api-key")
        if given is None:
            scheme, _, given = (request.header(b"authorization") or b"").partition(b" ")
            given = given.strip() if scheme.lower() == b"bearer" else b""
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        if not any(matches):
            is_badly_signed = is_linked and not given and "signature" in request.parameters
            raise HttpError(
                HTTPStatus.UNAUTHORIZED,
                BADLY_SIGNED if is_badly_signed else KEY_WANTED,
                ((b"www-authenticate", b"Bearer"),),
            )

    def is_signed(self, request: Request) -> bool:
        """Say whether a link is signed with one of the keys; raises HttpError 401 if it has expired."""
        parameters = request.parameters
        expires, signature = (parameters.get(name, "") for name in ("expires", "signature"))
        if not signature or not (expires.isascii() and expires.isdigit() and len(expires) <= DIGITS_OF_A_TIME):
            return False
        given = signature.lower().encode()  # hex has either case
        matches = [hmac.compare_digest(given, sign(key, request.path, expires).encode()) for key in self.keys]
        if not any(matches):
            return False
        left = int(expires) - time.time()
        if not 0 < left <= LONGEST_LINK:
            said = "the link has expired; open the hit again" if left <= 0 else "links are valid for at most a day"
            raise HttpError(HTTPStatus.UNAUTHORIZED, said)
        return True

    def headers(self, request: Request) -> tuple[Header, ...]:
        """Return the headers that let pages of other origins read an answer, or forbid it."""
        if not self.origins:
            return ((b"cross-origin-resource-policy", b"same-origin"),)
        if b"*" in self.origins:
            return ((b"access-control-allow-origin", b"*"), EXPOSED)
        origin = request.header(b"origin")
        vary = ((b"vary", b"Origin"),)
        if origin is None or origin not in self.origins:
            return vary
        return (
            *vary,
            (b"access-control-allow-origin", origin),
            EXPOSED,
        )

    def preflight(self, request: Request) -> Response:
        """Answer OPTIONS: whether pages of the origin may send requests; without an origin, which methods there are."""
        if request.header(b"origin") is None:
            return Response(b"", status=HTTPStatus.NO_CONTENT, headers=((b"allow", METHODS),))
        if not self.origins:
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "pages of other origins may not use this server; start it with --cors to allow them",
            )
        return Response(b"", status=HTTPStatus.NO_CONTENT, headers=PREFLIGHT)


def sign(key: bytes, path: str, expires: str) -> str:
    """Return the signature of a link: HMAC-SHA256 in hex of its path, not encoded, a line end, and `expires`."""
    return hmac.new(key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


def host_name(host: str) -> str:
    """Return a Host header without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


@lru_cache(KEPT_NAMES)
def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(KEPT_NAMES)
def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback
