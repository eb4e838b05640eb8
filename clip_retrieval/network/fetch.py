"""Fetches untrusted urls: public addresses only, within limits of time, size and tries.

A name is resolved once for each connection, the address is checked, and the connection goes to that address, so
DNS rebinding has no effect. One deadline covers all of a request: look-up, TLS, redirects, head and body.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from clip_retrieval.errors import one_line
from clip_retrieval.network.connections import Deadline, FetchError, connected
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.version import __version__

USER_AGENT = f"clip-retrieval/{__version__}"
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
NOT_WANTED = {"noai", "noimageai", "noindex", "noimageindex", "none"}
LONGEST_PAUSE = 30.0  # seconds; a longer Retry-After ends the tries
READ_BYTES = 1 << 16
GZIP_OR_ZLIB = 47  # wbits value that detects gzip and zlib headers
UNQUOTED = "%/:=&?~#+!$,;'@()*[]|"


def fetch(url: str, limits: FetchLimits, pause: Callable[[float], None] = time.sleep) -> bytes:
    """Return the bytes at an http or https url; raises FetchError, after retries if the error may pass."""
    for tries in range(limits.fetch_retries + 1):
        try:
            return fetch_once(url, limits, Deadline(limits.fetch_timeout))
        except FetchError as error:
            wait = 0.5 * 2**tries if error.pause is None else error.pause
            if not error.is_passing or tries == limits.fetch_retries or wait > LONGEST_PAUSE:
                raise
        pause(wait)
    raise AssertionError("the last try returns or raises")


def fetch_once(url: str, limits: FetchLimits, deadline: Deadline) -> bytes:
    """Follow redirects, each to a checked address; raises FetchError."""
    for _ in range(MOST_REDIRECTS + 1):
        target = parse_url(url)
        with translated(url), connected(target, deadline, allow_private=limits.allow_private_addresses) as sock:
            response = request(target, sock, deadline)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None:
                return read_response(response, limits)
        url = urljoin(url, location)
    raise FetchError("redirects", f"more than {MOST_REDIRECTS} redirects, the last to {url}")


def parse_url(url: str) -> SplitResult:
    """Return the parts of an http or https url; raises FetchError if it is not one."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        ascii_host = (host or "").encode("ascii" if host and host.isascii() else "idna").decode()
    except ValueError as error:
        raise FetchError("bad_url", f"{url[:200]} is no url: {error}") from error
    if parts.scheme not in ("http", "https") or not ascii_host:
        raise FetchError("bad_url", f"{url[:200]} is no http or https url")
    if parts.username is not None or parts.password is not None:
        raise FetchError("bad_url", "a url with a name or password in it is not used")
    place = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    return parts._replace(netloc=place if port is None else f"{place}:{port}")


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn errors of the connection into a FetchError with a reason."""
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", f"no whole answer in time from {url[:200]}", is_passing=True) from error
    except ssl.SSLError as error:
        is_cut = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        raise FetchError("connection" if is_cut else "tls", one_line(error), is_passing=is_cut) from error
    except http.client.InvalidURL as error:
        raise FetchError("bad_url", one_line(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise FetchError("connection", one_line(error), is_passing=True) from error
    except (ValueError, UnicodeError) as error:
        raise FetchError("bad_url", one_line(error)) from error


class DeadlineReader(io.RawIOBase):
    """Reads from a socket; each read has only the rest of the deadline, so that a slow server cannot extend it."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock, self.deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.sock.settimeout(self.deadline.left())
        return self.sock.recv_into(buffer)


class DeadlineSocket:
    """The methods of a socket that http.client uses; close does nothing, because the opener closes the socket."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock, self.deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(self.deadline.left())
        self.sock.sendall(data)

    def makefile(self, _mode: str, *_: object) -> io.BufferedReader:
        return io.BufferedReader(DeadlineReader(self.sock, self.deadline))

    def close(self) -> None:
        return


def request(target: SplitResult, sock: socket.socket, deadline: Deadline) -> http.client.HTTPResponse:
    """Send one GET over the socket and return the answer's head."""
    connection = http.client.HTTPConnection(target.netloc)
    connection.default_port = 443 if target.scheme == "https" else 80
    connection.port = target.port or connection.default_port
    connection.sock = cast("socket.socket", DeadlineSocket(sock, deadline))
    path = quote(target.path or "/", safe=UNQUOTED) + (f"?{quote(target.query, safe=UNQUOTED)}" * bool(target.query))
    headers = {"User-Agent": USER_AGENT, "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"}
    connection.request("GET", path, headers=headers | {"Connection": "close"})
    return connection.getresponse()


def read_response(response: http.client.HTTPResponse, limits: FetchLimits) -> bytes:
    """Return the body of a response; raises FetchError if status or X-Robots-Tag forbid its use."""
    if response.status != http.client.OK:
        raise FetchError(
            f"http_{response.status}",
            f"the server answered {response.status} {response.reason}"[:200],
            is_passing=response.status in PASSING_STATUS,
            pause=pause_of(response.headers.get("Retry-After")),
        )
    tags = response.headers.get_all("X-Robots-Tag") or []
    if limits.respect_robots_tag and any(map(asks_to_be_left_out, tags)):
        raise FetchError("robots_tag", f"X-Robots-Tag: {', '.join(tags)}"[:200])
    encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    return decoded(read_body(response, limits.fetch_max_bytes), encoding, limits.fetch_max_bytes)


def pause_of(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def asks_to_be_left_out(tag: str) -> bool:
    """Say whether an X-Robots-Tag forbids use; a tag `name: …` applies only to the program of that name."""
    name, colon, rest = tag.partition(":")
    if colon and "," not in name and name.strip().lower() not in (*NOT_WANTED, "unavailable_after"):
        return name.strip().lower() == "clip-retrieval" and asks_to_be_left_out(rest)
    return any(word.strip().lower() in NOT_WANTED for word in tag.split(","))


def read_body(response: http.client.HTTPResponse, most: int) -> bytes:
    body = bytearray()
    while len(body) <= most and (response.length or 0) <= most:
        part = response.read(READ_BYTES)
        if not part:
            if response.length:
                raise FetchError("connection", "the connection ended inside the body", is_passing=True)
            return bytes(body)
        body += part
    raise FetchError("too_many_bytes", f"more than {most:,} bytes (fetch_max_bytes)")


def decoded(body: bytes, encoding: str, most: int) -> bytes:
    """Decompress a body: some servers compress although the request says identity. Raises FetchError."""
    is_zlib = encoding in ("gzip", "x-gzip", "deflate")
    if encoding == "identity" or (is_zlib and not body.startswith((b"\x1f\x8b", b"\x78"))):
        return body  # the header is wrong: the body is not compressed
    if not is_zlib:
        raise FetchError("content_encoding", f"the server sent Content-Encoding: {encoding}"[:200])
    decompressor = zlib.decompressobj(GZIP_OR_ZLIB)
    try:
        data = decompressor.decompress(body, most + 1)
    except zlib.error as error:
        raise FetchError("content_encoding", f"no valid {encoding}: {one_line(error)}") from error
    if len(data) > most:
        raise FetchError("too_many_bytes", f"more than {most:,} bytes once it is unpacked (fetch_max_bytes)")
    if not decompressor.eof:
        raise FetchError("content_encoding", f"the {encoding} ends too early")
    return data
