"""A whole Spark cluster on this machine, for tests and trials: a master and two workers of one core, on loopback.

python tests/clusters/local_spark.py FOLDER

Prints JSON when both workers are registered: the master's address, the environment for drivers, and the process ids of
the workers. When stdin closes, for any reason, all of it is killed. Ports come from the kernel; everything else is in
FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyspark

SPARK_HOME = Path(pyspark.__file__).parent
PATIENCE_SECONDS = 300  # of a machine that is busy otherwise
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
GPU = '{"name": "gpu", "addresses": ["7"]}'  # what each worker says of its machine
OPTIONS = f"""
spark.ui.enabled false
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.driver.memory 512m
spark.executor.memory 512m
spark.cores.max 2
spark.scheduler.minRegisteredResourcesRatio 1.0
spark.worker.resource.gpu.amount 1
spark.driver.extraJavaOptions {JAVA}
spark.executor.extraJavaOptions {JAVA}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(session: int) -> Iterator[tuple[int, str]]:
    """Yield id and command of every process of a session, which children of children still belong to."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rpartition(")")[2].split()[3]) == session:
            yield int(folder.name), command.replace(b"\0", b" ").decode()


def send_all(session: int, number: signal.Signals, only: str = "") -> None:
    """Send a signal to the processes of a session whose command has a part."""
    for process, command in processes_of(session):
        if only in command:
            with suppress(ProcessLookupError):
                os.kill(process, number)


class LocalSpark:
    """The daemons of one cluster, each the leader of a session that its executors and their Pythons belong to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_CONF_DIR": str(folder),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(folder),
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": JAVA,
            "PYSPARK_PYTHON": sys.executable,
        }
        self.master = f"spark://127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Start all daemons; raises SystemExit if the workers do not register."""
        gpus = self.folder / "gpus.sh"
        gpus.write_text(f"#!/bin/sh\necho '{GPU}'\n")
        gpus.chmod(0o755)
        (self.folder / "spark-defaults.conf").write_text(f"{OPTIONS}spark.worker.resource.gpu.discoveryScript {gpus}\n")
        self.run("master.Master", "--port", self.master.rpartition(":")[2])
        own = ("--cores", "1", "--memory", "1g", "--work-dir", str(self.folder / "work"))
        for _ in range(2):
            self.run("worker.Worker", *own, self.master)
        said, deadline = self.folder / "daemons.log", time.monotonic() + PATIENCE_SECONDS
        while said.read_text().count("Successfully registered with master") < 2:
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                sys.exit(f"the workers did not register; see {said}")
            time.sleep(0.05)

    def run(self, role: str, *arguments: str) -> None:
        command = [SPARK_HOME / "bin" / "spark-class", f"org.apache.spark.deploy.{role}", "--host", "127.0.0.1"]
        with (self.folder / "daemons.log").open("ab") as log:
            daemon = subprocess.Popen(
                [*map(str, command), "--webui-port", "0", *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(daemon)

    def end(self) -> None:
        for daemon in self.daemons:
            send_all(daemon.pid, signal.SIGKILL)
            daemon.wait()


def main() -> None:
    cluster = LocalSpark(Path(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stdin closes then too
    try:
        cluster.start()
        workers = [daemon.pid for daemon in cluster.daemons[1:]]
        about = {"address": cluster.master, "environment": cluster.environment, "nodes": workers}
        print(json.dumps(about), flush=True)  # noqa: T201 -- the answer of this program
        sys.stdin.read()
    finally:
        cluster.end()


if __name__ == "__main__":
    main()
