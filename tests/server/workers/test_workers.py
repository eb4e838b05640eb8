"""`back --workers`: processes that answer on one socket are one server, even if one of them dies."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clip_retrieval.server.config import ServedConfig
from clip_retrieval.server.indices import EncoderPool, open_generation
from clip_retrieval.server.named import NamedIndex

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

SECONDS = 120.0  # only to catch what hangs
WriteIndex = Callable[..., Path]


@dataclass
class Team:
    """A server of two workers, as a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    folder: Path

    @property
    def port(self) -> int:
        wait_until(lambda: " answers" in self.log.read_text())
        line = next(line for line in self.log.read_text().splitlines() if " answers" in line)
        return int(line.split()[0].rpartition(":")[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def ask(self, path: str, body: object = None) -> tuple[int, str]:
        """Send a request on a new connection."""
        connection = self.connect()
        try:
            return ask_on(connection, path, body)
        finally:
            connection.close()

    def wait_for_both(self) -> list[int]:
        """Return the processes of the workers, once both are ready."""
        wait_until(lambda: json.loads(self.ask("/readyz")[1]).get("workers") == {"ready": 2, "of": 2})
        return workers_of(self.process.pid)

    def count(self, route: str) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        start = f'clip_retrieval_requests_total{{route="{route}",status="200"}} '
        return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0.0)


def ask_on(connection: http.client.HTTPConnection, path: str, body: object = None) -> tuple[int, str]:
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def workers_of(parent: int) -> list[int]:
    """Return the children of a process that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(place.parent.name))
    return sorted(found)


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def started(folder: Path, log: Path) -> Iterator[Team]:
    command = [sys.executable, "-m", "clip_retrieval", "back", str(folder), "--port", "0", "--workers", "2"]
    with (
        log.open("wb") as file,
        subprocess.Popen([*command, "--reload_seconds", "3000"], stderr=file, start_new_session=True) as process,
    ):
        try:
            yield Team(process, log, folder)
        finally:
            process.kill()


def write(folder: Path, write_index: WriteIndex, label: str) -> Path:
    return write_index(folder, pd.DataFrame({"caption": [f"{label} {place}" for place in range(8)]}))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, write_index: WriteIndex) -> Iterator[Team]:
    """Give one server to all tests, which end it as a terminal does: Ctrl-C reaches every process."""
    place = tmp_path_factory.mktemp("team")
    with started(write(place / "words", write_index, "old"), place / "log") as team:
        yield team
        workers = team.wait_for_both()
        os.killpg(team.process.pid, signal.SIGINT)
        assert team.process.wait(SECONDS) == 0
        assert not any(map(is_there, workers))
        said = team.log.read_text()
        assert said.count("stopping: requests in progress are answered first\n") == 1
        assert said.count(" answers; ") == 1
        assert said.count("rows, ") == 1  # only the first worker logs the index


def test_a_killed_worker_is_replaced_and_only_its_own_connections_break(team: Team) -> None:
    before = team.wait_for_both()
    counted = team.count("/indices-list")
    connections = [team.connect() for _ in range(8)]
    assert [ask_on(connection, "/indices-list") for connection in connections] == [(200, '["words"]')] * 8
    os.kill(before[0], signal.SIGKILL)
    answered = 0
    for connection in connections:
        try:
            answered += ask_on(connection, "/indices-list") == (200, '["words"]')
        except (http.client.HTTPException, OSError):
            continue
        finally:
            connection.close()
    assert 2 <= answered <= 6  # each had about half of them
    asked = 0
    while len(now := workers_of(team.process.pid)) < 2 or before[0] in now:
        assert team.ask("/indices-list") == (200, '["words"]')
        asked += 1
    assert set(team.wait_for_both()) & set(before) == {before[1]}
    assert team.count("/indices-list") == counted + 8 + answered + asked  # also what the killed one has counted
    assert f"worker {1 if before[0] == min(before) else 2} " in team.log.read_text()
    assert "was killed by signal 9; another one replaces it" in team.log.read_text()


def test_a_worker_that_is_told_to_stop_is_replaced_too(team: Team) -> None:
    before = team.wait_for_both()
    os.kill(before[1], signal.SIGTERM)
    while before[1] in workers_of(team.process.pid):
        assert team.ask("/indices-list") == (200, '["words"]')
    assert len(team.wait_for_both()) == 2


def test_the_figures_are_those_of_all_workers(team: Team) -> None:
    team.wait_for_both()
    before = team.count("/knn-service")
    asked = {"embedding_input": [1.0] * 64, "num_images": 1, "modality": "image"}
    answers = {team.ask("/knn-service", asked)[0] for _ in range(6)}
    assert answers <= {200, 400}  # 400: the index has other dimensions
    for _ in range(4):  # whichever of them answers
        lines = team.ask("/metrics")[1].splitlines()
        found = [float(line.split()[1]) for line in lines if line.startswith("full_knn_request_time_count")]
        assert found
        assert team.count("/knn-service") == before + 6 * (answers == {200})
        assert 'clip_retrieval_waiting{lane="search"} 0.0' in lines
    assert len({team.ask("/metrics-summary")[1] for _ in range(4)}) == 1


def test_a_generation_that_one_worker_has_opened_is_refused_by_none(team: Team, write_index: WriteIndex) -> None:
    team.wait_for_both()

    def generation() -> str:
        return open_generation(NamedIndex("words", str(team.folder), ServedConfig()), EncoderPool()).id

    old = generation()
    write(team.folder, write_index, "new")
    new = generation()
    assert new != old

    def ask(wanted: str) -> tuple[int, Any]:
        status, said = team.ask("/metadata", {"ids": [3], "generation": wanted})
        return status, json.loads(said)

    assert [ask(new) for _ in range(6)] == [(200, [{"id": 3, "metadata": {"caption": "new 3"}}])] * 6
    assert {ask(old)[0] for _ in range(6)} == {409}


def test_workers_do_not_outlive_a_supervisor_that_is_killed(team: Team, tmp_path: Path) -> None:
    with started(team.folder, tmp_path / "log") as other:
        workers = other.wait_for_both()
        other.process.kill()
        wait_until(lambda: not any(map(is_there, workers)))


def test_what_the_first_worker_cannot_open_is_one_sentence(tmp_path: Path) -> None:
    with started(tmp_path / "nowhere", tmp_path / "log") as team:
        assert team.process.wait(SECONDS) == 1
    said = team.log.read_text().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"Error: there is neither an index folder nor a json file {tmp_path / 'nowhere'}")
