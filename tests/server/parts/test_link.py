"""A part over HTTP: slow, hanging up, busy; played by sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.metrics import Metrics
from clip_retrieval.server.parts import link as link_module
from clip_retrieval.server.parts.connections import Connections
from clip_retrieval.server.parts.figures import Figures, PartMetrics
from clip_retrieval.server.parts.link import Call, Link, Place, RebuiltError, UnansweredError

CALL = Call("POST", "/v1/search", b"{}")
OK = "200 OK"

Behave = Callable[[int], str | None]  # number of the connection -> status line, "hang up", or None: never


def run(behave: Behave, check: Callable[[Link], Awaitable[None]], *, seconds: float = 60.0) -> Metrics:
    """Run a check of a link to a server that behaves in some way; return the figures."""
    metrics = Metrics()

    async def main() -> None:
        number, open_writers = 0, []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal number
            number += 1
            status = behave(number)
            open_writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            if status is None:
                return
            if status != "hang up":
                body = b'{"message": "a sentence"}'
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nRetry-After: 7\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connections = Connections(build_config(BackConfig, {"part_timeout": seconds}, []))
        try:
            await check(Link(Place.of(url), 1, connections, Figures(PartMetrics(metrics), "index")))
        finally:
            await connections.close()
            for writer in open_writers:
                writer.close()
            server.close()

    asyncio.run(main())
    return metrics


def count(metrics: Metrics, line: str) -> bool:
    return line in metrics.text()[0].decode()


def test_a_broken_connection_is_tried_once_more() -> None:
    async def check(link: Link) -> None:
        assert (await link.ask(CALL)).status == 200

    metrics = run(lambda number: "hang up" if number == 1 else OK, check)
    assert count(metrics, 'clip_retrieval_part_retries_total{index="index",part="1"} 1.0')


def test_a_part_that_hangs_up_twice_cannot_be_reached() -> None:
    connections = []

    async def check(link: Link) -> None:
        with pytest.raises(UnansweredError, match="it cannot be reached"):
            await link.ask(CALL)

    run(lambda number: connections.append(number) or "hang up", check)  # type: ignore[func-returns-value]
    assert connections == [1, 2]


def test_a_part_that_is_too_slow_is_left_alone_until_it_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PAUSE", 0.0)
    monkeypatch.setattr(link_module, "SECONDS_OF_A_CHECK", 0.05)
    is_stuck = True
    asked: list[int] = []

    def behave(number: int) -> str | None:
        asked.append(number)
        return None if is_stuck else OK

    async def check(link: Link) -> None:
        nonlocal is_stuck
        with pytest.raises(UnansweredError, match=r"no answer within 0\.05 s"):
            await link.ask(CALL)
        link.seconds = 60.0
        with pytest.raises(UnansweredError, match="before"):  # nobody waits for it
            await link.ask(CALL)
        monkeypatch.setattr(link_module, "SECONDS_OF_A_CHECK", 60.0)
        is_stuck = False
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await link.ask(CALL)
                    break
                except UnansweredError:
                    await asyncio.sleep(0.01)
        assert answer.status == 200

    metrics = run(behave, check, seconds=0.05)
    assert count(metrics, 'clip_retrieval_part_requests_total{index="index",outcome="timeout",part="1"} 1.0')


@pytest.mark.parametrize(
    ("status", "wanted", "said"),
    [
        ("400 Bad Request", HttpError, "a sentence"),
        ("429 Too Many Requests", HttpError, "too busy"),
        ("409 Conflict", RebuiltError, "part 1"),
        ("404 Not Found", UnansweredError, "it answers 404: a sentence"),
        ("503 Service Unavailable", UnansweredError, "it answers 503: a sentence"),
    ],
)
def test_a_status_is_a_refusal_or_no_answer(status: str, wanted: type[Exception], said: str) -> None:
    caught: list[Any] = []

    async def check(link: Link) -> None:
        with pytest.raises(wanted) as found:
            await link.ask(CALL)
        caught.append(found.value)

    run(lambda _: status, check)
    assert said in str(caught[0])
    if isinstance(caught[0], HttpError) and caught[0].status == 429:
        assert caught[0].headers == ((b"retry-after", b"7"),)


@pytest.mark.parametrize(
    ("address", "url", "index"),
    [
        ("http://a:1", "http://a:1", None),
        ("https://a/sub", "https://a/sub", None),
        ("http://a:1?index=my%20photos", "http://a:1", "my photos"),
        ("http://a:1/?index=b", "http://a:1", "b"),
    ],
)
def test_an_address_may_name_an_index(address: str, url: str, index: str | None) -> None:
    assert Place.of(address) == Place(url, index)
