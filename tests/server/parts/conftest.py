"""An index of 240 rows, the same rows in three parts on servers of this process, and a server before these."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest

from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import Listening, listening
from tests.server.conftest import Client, open_client

ROWS = 240
ENDS = (0, 100, 161, 240)
TWINS = (7, 130)  # rows of the same vector, in different parts


@dataclass
class Door:
    """A socket before a server: open, shut (as if there were no server), or stuck (no answer ever comes back)."""

    target: tuple[str, int]
    state: str = "open"
    url: str = ""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.state == "shut":
            writer.transport.abort()
            return
        self.writers.add(writer)
        inner, outer = await asyncio.open_connection(*self.target)
        self.writers.add(outer)
        await asyncio.gather(self.pump(reader, outer), self.pump(inner, writer))

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if self.state == "open":
                    writer.write(data)
        except OSError:
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def drop_all(self) -> None:
        for writer in list(self.writers):
            writer.transport.abort()


class Doors:
    """Doors before servers, and the event loop that they are in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.doors: list[Door] = []
        self.servers: list[asyncio.Server] = []

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def add(self, url: str) -> Door:
        place = urlsplit(url)
        door = Door((str(place.hostname), int(place.port or 0)))
        server = self.run(asyncio.start_server(door.enter, "127.0.0.1", 0))
        door.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.doors.append(door)
        self.servers.append(server)
        return door

    def set(self, door: Door, state: str) -> None:
        async def change() -> None:
            door.state = state
            if state == "shut":
                door.drop_all()

        self.run(change())

    def close(self) -> None:
        async def end() -> None:
            for server in self.servers:
                server.close()
            own = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not own]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@dataclass
class Parts:
    """Servers of parts, a door before each, and where the same rows are in one index."""

    whole: Path
    servers: Sequence[Listening]
    doors: Sequence[Door]
    house: Doors

    @property
    def urls(self) -> list[str]:
        return [door.url for door in self.doors]

    def set(self, part: int, state: str) -> None:
        self.house.set(self.doors[part - 1], state)


@contextmanager
def serve_folders(folders: Sequence[Path]) -> Iterator[list[Listening]]:
    with ExitStack() as stack:
        options = {"port": 0, "reload_seconds": 0}
        configs = [build_config(BackConfig, options, [str(folder)]) for folder in folders]
        yield [stack.enter_context(listening(config)) for config in configs]


def make_rows(unit_rows: Callable[..., Any]) -> tuple[Any, pd.DataFrame]:
    rows = unit_rows(ROWS, 16, seed=3)
    rows[TWINS[1]] = rows[TWINS[0]]
    near = rows[20] + 0.05 * rows[21]
    rows[170] = near / np.linalg.norm(near)
    metadata = pd.DataFrame({"caption": [f"row {number}" for number in range(ROWS)], "url": None})
    metadata["width"] = [number * 37 % 1000 for number in range(ROWS)]
    metadata.loc[TWINS[1]] = metadata.loc[TWINS[0]]  # one index does not define the order of equal rows
    return rows, metadata


@pytest.fixture(scope="module")
def parts(
    tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path], unit_rows: Callable[..., Any]
) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("parts")
    rows, metadata = make_rows(unit_rows)
    whole = write_index(folder / "index", metadata, rows=rows)
    folders = [
        write_index(folder / f"part{number}", metadata[start:stop].reset_index(drop=True), rows=rows[start:stop])
        for number, (start, stop) in enumerate(pairwise(ENDS))
    ]
    house = Doors()
    with serve_folders(folders) as servers:
        yield Parts(whole, servers, [house.add(server.url) for server in servers], house)
    house.close()


@pytest.fixture(scope="module")
def front(parts: Parts) -> Iterator[Client]:
    """Give the client of a server before the parts."""
    with open_client("indices_paths.json", {"parts": parts.urls, "part_timeout": 30.0}) as client:
        yield client


@pytest.fixture
def open_doors(parts: Parts) -> Iterator[Parts]:
    """Give the parts, and open all doors again at the end."""
    yield parts
    for number in range(1, len(parts.doors) + 1):
        parts.set(number, "open")


@pytest.fixture(scope="module")
def one(parts: Parts) -> Iterator[Client]:
    """Give the client of a server of all rows in one index."""
    with open_client(parts.whole, {}) as client:
        yield client
