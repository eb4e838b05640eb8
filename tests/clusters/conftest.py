"""Real engines on this machine, one of each for all tests, and what looks at their processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

PATIENCE_SECONDS = 600  # of a machine that is busy otherwise
HERE = Path(__file__).parent


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Return what the condition gives once it is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


def processes() -> Iterator[tuple[int, int, int, str]]:
    """Yield id, parent, session and command of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield int(folder.name), int(stat[1]), int(stat[3]), command


def descendants(process: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for own, parent, *_ in processes():
        children.setdefault(parent, []).append(own)
    found, left = set(), [process]
    while left:
        below = children.get(left.pop(), [])
        found.update(below)
        left += below
    return found


@dataclass
class Engine(ABC):
    """A cluster that a helper program runs: its address, and one process id for each node."""

    program: subprocess.Popen[str]
    address: str
    nodes: list[int]
    environment: dict[str, str] = field(default_factory=dict)
    wait_for = staticmethod(wait_for)

    @staticmethod
    def below(process: int, part: str = "") -> list[int]:
        """Return the processes below one whose command has a part."""
        found = descendants(process)
        return [own for own, *_, command in processes() if own in found and part in command]

    @staticmethod
    def alive(workers: list[int]) -> bool:
        return bool({own for own, *_ in processes()} & set(workers))

    @staticmethod
    def send(number: signal.Signals, *targets: int) -> None:
        for process in targets:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    @abstractmethod
    def kill_a_node(self, workers: list[int]) -> None:
        """Kill Spark's executor, or Ray's second node, that runs one of these workers."""

    @contextmanager
    def running(self, *command: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Start a driver, which ends with the block, with all that it started."""
        with subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                own = [one for one, _, session, _ in processes() if session == process.pid]
                self.send(signal.SIGKILL, *own)


class Spark(Engine):
    """Its nodes are the workers, which start another executor if one died."""

    def kill_a_node(self, workers: list[int]) -> None:
        doomed = next(node for node in self.nodes if workers[0] in descendants(node))
        self.send(signal.SIGKILL, *self.below(doomed, "java"))


class Ray(Engine):
    """Its nodes are the raylets; the first is the head, without which the cluster ends."""

    def kill_a_node(self, workers: list[int]) -> None:
        raylet = self.nodes.pop()
        assert descendants(raylet) & set(workers)
        self.send(signal.SIGKILL, raylet)
        self.add_node()

    def add_node(self) -> None:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        self.nodes.append(json.loads(self.program.stdout.readline()))


Kind = TypeVar("Kind", bound=Engine)


@contextmanager
def started(kind: type[Kind], program: str, *arguments: object) -> Iterator[Kind]:
    """Start an engine for a block; its workers import what this process does."""
    site = os.pathsep.join([str(HERE / "held"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(HERE / program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": site},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, f"{program} did not start an engine"
            about = json.loads(line)
            yield kind(process, about["address"], about["nodes"], about.get("environment", {}))
        finally:
            process.stdin.close()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """Give a master and two workers; the process ids are those of the workers, and lead their sessions."""
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, and there is none here")
    with started(Spark, "local_spark.py", tmp_path_factory.mktemp("spark")) as engine:
        yield engine


@pytest.fixture(scope="session")
def ray() -> Iterator[Ray]:
    """Give two nodes; the process ids are those of the raylets, and the head is the first."""
    pytest.importorskip("ray", reason="ray is not installed")
    with started(Ray, "local_ray.py") as engine:
        yield engine
