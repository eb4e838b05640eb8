"""HTTP to other servers from the event loop, over kept connections. aiohttp takes a seventh of httpx's CPU time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_retrieval.errors import ConfigError, one_line
from clip_retrieval.installed import need
from clip_retrieval.server.config import BackConfig

if TYPE_CHECKING:
    import aiohttp

IDLE_SECONDS = 60  # of a connection; `back` closes connections that are idle for 75
LARGEST_LINE = 32 << 10  # bytes of a header
Span = tuple[int, int]  # first byte, and the one after the last


@dataclass(frozen=True)
class Reply:
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class LostError(Exception):
    """There was no connection, or it broke before the answer was complete."""


class Connections:
    """The connections of one server to others. They belong to its event loop, and open at the first request."""

    def __init__(self, config: BackConfig) -> None:
        self.config = config
        self.session: aiohttp.ClientSession | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def ask(self, method: str, url: str, body: bytes | None = None, span: Span | None = None) -> Reply:
        """Send a request. Raises LostError; the caller limits the time."""
        if self.session is None:
            self.session = open_session(self.config)
        return await ask(self.session, method, url, body, span)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; it is cancelled when the server ends."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Close the connections, in their event loop."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.session is not None:
            await self.session.close()


def open_session(config: BackConfig) -> aiohttp.ClientSession:
    """Return a session for the running event loop. It ignores proxies of the environment, since parts are near."""
    import aiohttp

    key = read_key(config.parted.part_key_file)
    waiting = 2 * config.limits.max_waiting
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=waiting, keepalive_timeout=IDLE_SECONDS),
        headers={} if key is None else {"X-API-Key": key},
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=LARGEST_LINE,
        max_field_size=LARGEST_LINE,
    )


async def ask(
    session: aiohttp.ClientSession, method: str, url: str, body: bytes | None, span: Span | None = None
) -> Reply:
    """Send a request over a session, for the whole answer or a span of its bytes. Raises LostError."""
    import aiohttp

    headers = {} if span is None else {"range": f"bytes={span[0]}-{span[1] - 1}"}

    try:
        async with session.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
            return Reply(answer.status, answer.headers, await answer.read())
    except aiohttp.ClientConnectorError as error:
        raise LostError(one_line(error.os_error.strerror or error.os_error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise LostError(one_line(error) or type(error).__name__) from error


def check_installed() -> None:
    """Raise ConfigError if the package for requests to parts is missing."""
    need("aiohttp", "an index in parts", ConfigError, extra="serve")


def read_key(path: str | None) -> str | None:
    """Return the first line of a file. Raises ConfigError."""
    if path is None:
        return None
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"part_key_file {path} cannot be read: {one_line(error)}") from error
    if not lines or not (lines[0].isascii() and lines[0].isprintable()):
        raise ConfigError(f"part_key_file {path} holds no key; write it into its first line")
    return lines[0]
