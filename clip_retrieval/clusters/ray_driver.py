"""A process that talks to Ray for another one: JSON lines on stdin, answers on stdout, and nothing on the terminal.

Ray prints what its raylets say to stdout, handles SIGTERM itself, and may hang while it connects. None of that
reaches the process that started this one.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import threading
import time
from collections.abc import Sequence
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any

import ray

from clip_retrieval.clusters.base import check_version
from clip_retrieval.clusters.config import usual_share
from clip_retrieval.clusters.failures import explain_failure
from clip_retrieval.process.resources import count_cores
from clip_retrieval.version import __version__

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
# A process that has opened a GPU cannot switch to another one: it sees all of its machine, and is told which to use.
SEE_ALL_GPUS = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
RETRIES = 3  # of a task, as Spark does by default
MOST_WAITING = 1000  # tasks that Ray knows of at once
MOST_IN_A_ROW = 3  # failures without a success between them, which end the work
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_WORRY = 60.0
SECONDS_TO_LEAVE = 5.0


class Parent:
    """The process that started this one: its commands, and messages to it."""

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self.answers = answers
        self.commands: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.is_gone = threading.Event()
        threading.Thread(target=self.listen, args=[commands], daemon=True).start()

    def listen(self, commands: IO[str]) -> None:
        """Read commands until the parent closes its pipe; end this process if it does not end by itself then."""
        for line in commands:
            self.commands.put(json.loads(line))
        self.is_gone.set()
        self.commands.put(None)
        time.sleep(SECONDS_TO_LEAVE)
        os._exit(1)

    def tell(self, **message: object) -> None:
        self.answers.write(json.dumps(message) + "\n")
        self.answers.flush()


def connect(address: str | None) -> None:
    """Join the cluster at the address, or start one on this machine.

    Ray's own default, `auto`, hangs if a cluster that is gone left its address behind.
    """
    if address in (None, "local"):
        ray.init("local", include_dashboard=False, num_cpus=count_cores(), **QUIET)
    else:
        ray.init(address, **QUIET)


def task_options(resources: dict[str, float]) -> dict[str, Any]:
    """Return the options of a Ray task that takes these amounts."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    gpus = resources.get("GPU", 0)
    return {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": gpus,
        "resources": others,
        "max_retries": RETRIES,
        "retry_exceptions": True,
        "max_calls": 0,  # with GPUs Ray would start a process for each task, and each would open the model
        **({"runtime_env": SEE_ALL_GPUS} if gpus else {}),
    }


def run_task(version: str, function: bytes, task: str) -> None:
    """Run a pickled function on a pickled task; in a worker of Ray."""
    check_version(version)
    pickle.loads(function)(pickle.loads(base64.b64decode(task)))


class Job:
    """Some tasks of one function, under way on Ray."""

    def __init__(self, parent: Parent, resources: dict[str, float]) -> None:
        self.parent, self.resources = parent, resources
        self.remote: Any = ray.remote(**task_options(resources))(run_task)
        self.waiting: list[Any] = []  # results that are not there yet
        self.failed_in_a_row = 0
        self.worried = time.monotonic()

    def run(self, function: bytes, tasks: Sequence[str]) -> None:
        """Have all tasks run, a thousand at a time, until several have failed in a row or the parent is gone."""
        shared, left = ray.put(function), iter(tasks)
        while not self.parent.is_gone.is_set() and self.failed_in_a_row < MOST_IN_A_ROW:
            more = islice(left, MOST_WAITING - len(self.waiting))
            self.waiting += [self.remote.remote(__version__, shared, task) for task in more]
            if not self.waiting:
                break
            ready, self.waiting = ray.wait(self.waiting, num_returns=len(self.waiting), timeout=SECONDS_BETWEEN_LOOKS)
            for result in ready:
                self.take(result)
            if ready:
                self.parent.tell(ended=len(ready))
            self.worry()
        for result in self.waiting:
            ray.cancel(result, force=True)

    def take(self, result: Any) -> None:
        """See how a task ended."""
        try:
            ray.get(result)
            self.failed_in_a_row = 0
        except Exception as error:  # a task may raise anything  # noqa: BLE001
            self.failed_in_a_row += 1
            self.parent.tell(failed=explain_failure(error))

    def worry(self) -> None:
        """Say once a minute that no node of the cluster has what a task takes."""
        if time.monotonic() - self.worried < SECONDS_TO_WORRY:
            return
        self.worried = time.monotonic()
        has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in self.resources.items()) for node in has):
            self.parent.tell(waits=f"no node has {describe(self.resources)}, which a task takes")


def describe(resources: dict[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items())


def serve(parent: Parent) -> None:
    """Connect as the first command says, then run the tasks of each further one."""
    wanted = parent.commands.get()
    if wanted is None:
        return
    try:
        connect(wanted["address"])
        resources = wanted["resources"] or usual_share(ray.cluster_resources(), uses_gpus=wanted["uses_gpus"])
    except Exception as error:  # Ray may raise anything  # noqa: BLE001
        parent.tell(refused=explain_failure(error))
        return
    parent.tell(address=ray.get_runtime_context().gcs_address, resources=resources)
    while (command := parent.commands.get()) is not None:
        Job(parent, resources).run(base64.b64decode(command["function"]), command["tasks"])
        parent.tell(is_over=True)
    ray.shutdown()


def main() -> None:
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # of Ray, and of the processes that it starts
        os.dup2(nothing, stream)
    serve(Parent(commands, answers))


if __name__ == "__main__":
    main()
