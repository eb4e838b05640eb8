"""A Ray cluster of two nodes of one core on this machine, for tests and trials; the second has a GPU, it says.

python tests/clusters/local_ray.py

Prints JSON when both nodes are there: the address, and the process ids of the raylets, the head's first. A line on
stdin adds a node, and is answered by its raylet's id. When stdin closes, for whatever reason, all of it is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from typing import Any

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a node that is silent for so long counts as dead: 30 s by default
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
}
OBJECT_STORE_BYTES = 80_000_000


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def serve(folder: str) -> None:
    """Start the nodes, and more of them as told, until stdin closes."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 -- after the environment is set

    own = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**own, "temp_dir": folder})
    other = {**own, "num_gpus": 1, "resources": {"second": 1}}
    second = cluster.add_node(**other)
    answer({"address": cluster.address, "nodes": [raylet_of(cluster.head_node), raylet_of(second)]})
    for _ in sys.stdin:
        answer(raylet_of(cluster.add_node(**other)))


def main() -> None:
    os.environ.update(SETTINGS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stdin closes then too
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie in it, and their names have to be short
    answers = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no answer
    sys.stdout = os.fdopen(answers, "w")
    try:
        serve(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
