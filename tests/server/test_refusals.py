"""Too many requests are refused before they have a task, and only a few may be in progress during refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clip_retrieval.server.admission import Admission, Busy
from clip_retrieval.server.config import AccessConfig
from clip_retrieval.server.sockets import make_server

KEY = "0123456789abcdef"
BODY = json.dumps({"text": "dog", "modality": "image", "num_images": 1}).encode()
Answers = list[tuple[int, dict[str, str], Any]]


class Recorded(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.is_closed = b"", False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


def request(path: str = "/knn-service", *headers: str, body: bytes = BODY, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read_answers(written: bytes) -> Answers:
    """Return status, headers and JSON of each answer."""
    answers = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(headers["content-length"])
        answers.append((int(first.split()[1]), headers, json.loads(rest[:size])))
        written = rest[size:]
    return answers


@contextmanager
def full(client: Any) -> Iterator[None]:
    admission: Admission = client.served.app.admission
    admission.in_work += 10_000
    try:
        yield
    finally:
        admission.in_work -= 10_000


def send(client: Any, *sent: bytes) -> tuple[Answers, bool]:
    """Return what is answered to bytes on one connection without a task, and whether the connection is closed."""

    async def run() -> tuple[bytes, bool]:
        from uvicorn.server import ServerState  # noqa: PLC0415

        config = make_server(client.served.app, AccessConfig(), 1.0).config
        protocol = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
        transport = Recorded()
        protocol.connection_made(transport)
        tasks = asyncio.all_tasks()
        for data in sent:
            protocol.data_received(data)
            made = asyncio.all_tasks() - tasks
            while not made and not (protocol.cycle is None or protocol.cycle.response_complete):
                await asyncio.sleep(0.01)
            for task in made:
                task.cancel()
        found = transport.written, transport.is_closed
        protocol.connection_lost(None)
        return found

    written, is_closed = client.run(run())
    return read_answers(written), is_closed


def test_one_too_many_is_answered_before_there_is_a_task(client: Any) -> None:
    assert send(client, request()) == ([], False)  # with room there is one
    with full(client):
        whole, large = request(), request(body=b"x" * 200_000)
        answers, is_closed = send(client, whole[:40], whole[40:], large[:100_000], large[100_000:], whole)
    assert [(status, said["message"][:26], headers["retry-after"]) for status, headers, said in answers] == [
        (429, "too many requests are wait", "1")
    ] * 3
    assert not is_closed
    assert answers[0][1]["x-content-type-options"] == "nosniff"
    assert client.post("/knn-service", BODY).status_code == 200


def test_a_connection_that_is_not_to_be_kept_is_closed(client: Any) -> None:
    with full(client):
        for sent in (request("/knn-service", "Connection: close"), request(version="1.0")):
            answers, is_closed = send(client, sent)
            assert (answers[0][0], answers[0][1]["connection"], is_closed) == (429, "close", True)


def test_refusals_keep_the_rules_of_access_and_are_counted(index: Path, tmp_path: Path, serve: Any) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    client = serve(index, api_key_file=str(tmp_path / "keys"), cors=("https://example.org",))
    key = f"X-API-Key: {KEY}"
    asked = {
        ("/knn-service", key, "Origin: https://example.org"): 429,
        ("http://localhost//knn-service?a=b", key): 429,
        ("/knn-service",): 401,
        ("/knn-service", "X-API-Key: wrong"): 401,
        ("/knn-service", key, "Host: evil.example"): 429,  # the first one counts, as elsewhere
        ("/nowhere", key): 405,
        ("/metrics", key): 405,
    }
    with full(client):
        found = {given: send(client, request(*given))[0] for given in asked}
    assert {given: answers[0][0] for given, answers in found.items()} == asked
    allowed = [answers[0][1].get("access-control-allow-origin") for answers in found.values()]
    assert allowed == ["https://example.org", *[None] * 6]
    foreign = request("/knn-service", key).replace(b"Host: localhost", b"Host: evil.example")
    with full(client):
        assert send(client, foreign)[0][0][0] == 421
    lines = client.get("/metrics", headers={"x-api-key": KEY}).text.splitlines()
    counted = 'clip_retrieval_requests_total{route="/knn-service",status="%d"} %d.0'
    assert {counted % (429, 3), counted % (401, 2)} <= set(lines)


def fill(admission: Admission, held: int) -> int:
    """Return how many may be busy while refusals are held."""
    admission.in_work = admission.busy = 0
    admission.held = held
    while admission.enter():
        admission.busy += 1
    return admission.busy


def test_the_more_are_refused_the_fewer_may_be_busy() -> None:
    admission = Admission(64)
    assert [fill(admission, held) for held in (0, 16, 32, 64, 128, 512, 10_000)] == [64, 64, 32, 16, 8, 2, 2]
    assert fill(admission, 10) == 64  # as soon as fewer ask again
    assert not admission.enter()
    admission.busy -= 40  # which wait for a disk, or for their body
    assert not admission.enter()  # no more than that may be in work at all
    assert fill(admission, 512) == 2
    admission.busy -= 1
    assert admission.enter()


@pytest.mark.parametrize("most", [1, 8, 64])
def test_somebody_is_always_let_in(most: int) -> None:
    admission = Admission(most)
    assert fill(admission, 10_000) >= 1


def test_a_request_that_takes_long_keeps_nobody_out() -> None:
    async def run() -> list[int]:
        admission, counts = Admission(64), []
        with Busy(admission) as _, Busy(admission) as _:
            counts.append(admission.busy)
            while admission.busy:
                await asyncio.sleep(0.01)
        return [*counts, admission.busy]

    assert asyncio.run(run()) == [2, 0]
