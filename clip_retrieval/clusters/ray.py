"""Runs tasks on a Ray cluster, through a process that talks to it."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import gettempdir
from typing import Any, TypeVar

from clip_retrieval.clusters.base import Here, ShowProgress, why_unreachable
from clip_retrieval.clusters.config import ClusterConfig, parse_resources
from clip_retrieval.errors import ClusterError
from clip_retrieval.process.subprocesses import describe_end, start_module
from clip_retrieval.progress import show_progress

logger = logging.getLogger(__name__)

SECONDS_TO_CONNECT = 180.0  # a cluster on this machine starts in 7 seconds on an idle machine
SECONDS_TO_LEAVE = 10.0
Task = TypeVar("Task")


class RayCluster:
    """Runs tasks on Ray, shows progress, and reports a failure in one sentence."""

    rows_of_task: int | None = None
    is_here = False

    @property
    def gpu_of_task(self) -> Callable[[], str | None]:
        return gpu_of_task

    def __init__(self, driver: Driver, about: dict[str, Any], show: ShowProgress) -> None:
        self.driver, self.show = driver, show
        self.name = f"Ray at {about['address']}"
        self.cores_of_task: int | None = max(1, int(about["resources"].get("CPU", 1)))

    def share(self, value: bytes) -> Here:
        """Return the value: it travels with the function, which every node gets once."""
        return Here(value)

    def run(self, title: str, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Run the function on every task, anywhere; raises ClusterError when one has failed for good."""
        failures: list[str] = []
        self.driver.send(function=packed(function), tasks=[packed(task) for task in tasks])
        with self.show(f"{title}, tasks", len(tasks)) as advance:
            while "is_over" not in (message := self.driver.hear()):
                advance(message.get("ended", 0))
                if "failed" in message:
                    failures.append(message["failed"])
                if "waits" in message:
                    logger.warning("%s: %s", self.name, message["waits"])
        if failures:
            raise ClusterError(f"{title} on {self.name} failed: {failures[0]}")


class Driver:
    """The process that talks to Ray. It ends when its pipe closes, with all that it started."""

    def __init__(self) -> None:
        self.process = start_module("clip_retrieval.clusters.ray_driver", RAY_USAGE_STATS_ENABLED="0")
        self.messages: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)

    def send(self, **message: object) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `hear` says how it ended
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def hear(self, seconds: float | None = None) -> dict[str, Any]:
        """Return the next message; raises ClusterError if the process ended, Empty after so many seconds."""
        message = self.messages.get(timeout=seconds)
        if message is None:
            how = describe_end(self.process, SECONDS_TO_LEAVE)
            raise ClusterError(f"the process that talks to Ray {how}; run the same command again to go on")
        return message

    def close(self) -> None:
        """Let it cancel its tasks and leave the cluster; kill it if that takes long."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(SECONDS_TO_LEAVE)
        if not self.listener.is_alive():
            assert self.process.stdout is not None
            self.process.stdout.close()


def left_address() -> str:
    """Return the address that `ray start` left on this machine for `auto`; empty if there is none.

    The cluster may be gone, and Ray would look for it for minutes.
    """
    try:
        return (Path(os.environ.get("RAY_TMPDIR") or gettempdir()) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


@contextmanager
def open_ray(config: ClusterConfig, show: ShowProgress = show_progress, *, uses_gpus: bool) -> Iterator[RayCluster]:
    """Yield the cluster that the options name, or a new one here; raises ClusterError if none answers in time."""
    address = config.ray_address or joined_already() or os.environ.get("RAY_ADDRESS") or None
    where = f" at {address}" if address else ""
    joined = left_address() if address == "auto" else address
    why = why_unreachable(joined or "")
    if why:
        raise ClusterError(f"no Ray answers at {joined} ({why}); `ray start --head` prints the address")
    driver = Driver()
    try:
        driver.send(address=address, resources=parse_resources(config.ray_resources), uses_gpus=uses_gpus)
        try:
            about = driver.hear(SECONDS_TO_CONNECT)
        except Empty:
            raise ClusterError(
                f"Ray{where} accepts no connection within {SECONDS_TO_CONNECT:.0f} seconds; is its address one that "
                "this machine and its nodes share?"
            ) from None
        if "refused" in about:
            raise ClusterError(f"Ray{where} cannot be used: {about['refused']}")
        yield RayCluster(driver, about, show)
    finally:
        driver.close()


def joined_already() -> str | None:
    """Return the address of the cluster that this process has joined, as in a notebook."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().gcs_address) if ray is not None and ray.is_initialized() else None


def gpu_of_task() -> str | None:
    """Return the number of the GPU that Ray gave to the task that runs in this process."""
    numbers = sys.modules["ray"].get_gpu_ids()
    return str(numbers[0]) if numbers else None


def packed(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()
