"""A server without sockets: requests go to its application in one event loop, which a thread runs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import Served, open_server

WORDS = ["cat", "dog", "rocket", "sun", "sea", "tree", "house", "boat"]
SECONDS = 60


class Client:
    """Sends requests to an application, and waits for its answers."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://localhost:1234")

    def run(self, work: Any) -> Any:
        """Run a coroutine in the loop of the application."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer: httpx.Response = self.run(self.http.request(method, path, **options))
        return answer

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        """Post JSON without a content type, as the front does; bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, content=content, **options)

    def close(self) -> None:
        self.run(self.http.aclose())
        self.run(self.served.app.shut_down())
        self.served.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@contextmanager
def open_client(place: object, options: dict[str, Any]) -> Iterator[Client]:
    client = Client(open_server(build_config(BackConfig, {"reload_seconds": 0, **options}, [str(place)])))
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Give a function from an index folder, or a json file of them, and options to a client of their server."""
    with ExitStack() as stack:
        yield lambda place, **options: stack.enter_context(open_client(place, options))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> Path:
    """Give an index of eight words, with columns of several types, some of them without a value."""
    captions = pd.DataFrame(
        {
            "caption": WORDS,
            "url": [f"http://example.org/{word}.jpg" if word != "sea" else None for word in WORDS],
            "width": range(100, 900, 100),
            "aesthetic": [float(place) if place % 2 else float("nan") for place in range(8)],
            "secret": [f"secret {word}" for word in WORDS],
            "tags": [[word, None] for word in WORDS],
        }
    )
    return write_index(tmp_path_factory.mktemp("served") / "words", captions)


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[Client]:
    with open_client(index, {}) as opened:
        yield opened
