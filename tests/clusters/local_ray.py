"""A Ray cluster of two nodes of one core on this machine, for tests and trials; the second has a GPU, it says.

python tests/clusters/local_ray.py

Prints JSON when both nodes are there: the address, and the process ids of the raylets, the head's first. A line on
stdin adds a node, and is answered by its raylet's id. When stdin closes, for any reason, all of it is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a node that is silent for so long counts as dead: 30 s by default
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
}
OBJECT_STORE_BYTES = 80_000_000
TRIES = 4


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def processes_below(process: int) -> Iterator[int]:
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, file.read_text().split()):
                yield from processes_below(child)
                yield child


def patiently(start: Callable[[], Any]) -> Any:
    """Start a node; again if Ray gives up after 30 seconds, as on a busy machine."""
    before = set(processes_below(os.getpid()))
    for left in reversed(range(TRIES)):
        try:
            return start()
        except Exception as error:  # Ray raises a bare Exception
            if not left:
                raise
            sys.stderr.write(f"{error}\n")
            for process in set(processes_below(os.getpid())) - before:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    return None


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def serve(folder: str) -> None:
    """Start the nodes, and more on request, until stdin closes."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 -- after the environment is set

    own = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={**own, "temp_dir": folder}))
    other = {**own, "num_gpus": 1, "resources": {"second": 1}}
    second = patiently(lambda: cluster.add_node(**other))
    answer({"address": cluster.address, "nodes": [raylet_of(cluster.head_node), raylet_of(second)]})
    for _ in sys.stdin:
        answer(raylet_of(patiently(lambda: cluster.add_node(**other))))


def main() -> None:
    os.environ.update(SETTINGS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stdin closes then too
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets are in it, and their names have to be short
    os.environ["RAY_TMPDIR"] = folder  # Ray writes the address below it, and does not make the folder for that
    (Path(folder) / "ray").mkdir()
    answers = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is not an answer
    sys.stdout = os.fdopen(answers, "w")
    try:
        serve(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
