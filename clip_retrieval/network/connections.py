"""Connects only to checked addresses: a name is resolved once and must be public, all within one deadline."""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import SplitResult

from clip_retrieval.errors import one_line

SECONDS_FOR_AN_ADDRESS = 5.0  # then the next address of the host is tried
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class FetchError(Exception):
    """A url could not be fetched. `reason` is one word for counting, `pause` the seconds of Retry-After."""

    def __init__(self, reason: str, detail: str, *, is_passing: bool = False, pause: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.is_passing = is_passing
        self.pause = pause


class Deadline:
    """The moment when a request must be over."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; raises TimeoutError if there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no time left")
        return seconds


@contextmanager
def connected(target: SplitResult, deadline: Deadline, *, allow_private: bool) -> Iterator[socket.socket]:
    """Connect to the first allowed address of the host that accepts a connection."""
    host = target.hostname or ""
    port = target.port or (443 if target.scheme == "https" else 80)
    allowed = checked_addresses(host, look_up(host, port, deadline), allow_private=allow_private)
    sock = connect_first(allowed, port, deadline)
    with sock:
        if target.scheme == "http":
            yield sock
            return
        sock.settimeout(deadline.left())
        with tls_context().wrap_socket(sock, server_hostname=host) as secured:
            yield secured


@cache
def tls_context() -> ssl.SSLContext:
    """Return a TLS context, created once: loading the system's certificates takes longer than a request."""
    return ssl.create_default_context()


def look_up(host: str, port: int, deadline: Deadline) -> list[str]:
    """Resolve a host, in a thread because getaddrinfo has no timeout."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answers.get(timeout=deadline.left())
    except queue.Empty as error:
        raise TimeoutError(f"{host} was not looked up in time") from error
    if isinstance(found, socket.gaierror):
        raise FetchError(
            "unresolved", f"{host} has no address: {one_line(found)}", is_passing=found.errno == socket.EAI_AGAIN
        )
    if isinstance(found, Exception):
        raise found
    return list(dict.fromkeys(info[4][0] for info in found))


def checked_addresses(host: str, addresses: list[str], *, allow_private: bool) -> list[str]:
    """Return the addresses that may be connected to; raises FetchError if there are none."""
    allowed = [address for address in addresses if allow_private or is_public(ipaddress.ip_address(address))]
    if not allowed:
        raise FetchError(
            "forbidden_address", f"{host} is {', '.join(addresses)}, no public address (see --allow_private_addresses)"
        )
    return allowed


def is_public(address: Address) -> bool:
    """Say whether an address is public, including any IPv4 address embedded in it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local or not all(is_public(inner) for inner in carried(address)):
            return False
        if address.ipv4_mapped is not None or address in NAT64:
            return True
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def carried(address: ipaddress.IPv6Address) -> list[Address]:
    """Return the IPv4 addresses embedded in an IPv6 one: mapped, 6to4, Teredo, NAT64."""
    inner: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [item for item in inner if item is not None]


def connect_first(addresses: list[str], port: int, deadline: Deadline) -> socket.socket:
    problem: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=min(SECONDS_FOR_AN_ADDRESS, deadline.left()))
        except OSError as error:
            problem = error
    raise problem or OSError("no address")
