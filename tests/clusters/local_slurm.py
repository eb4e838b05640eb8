"""A whole Slurm on this machine, for tests and trials: munged, slurmctld and two slurmd, n1 and n2, on loopback.

python tests/clusters/local_slurm.py FOLDER [SETTING=VALUE ...]

Prints the path of slurm.conf when both nodes are idle. `start n1` on stdin starts a node's slurmd again. When stdin
closes, for any reason, all daemons and jobs are killed. Ports come from the kernel; everything else is in FOLDER.
"""

from __future__ import annotations

import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "scancel")
PATIENCE_SECONDS = 120  # of a machine that is busy otherwise
TRIES = 5  # another process may take a port before its daemon does
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
SETTINGS = {
    "ClusterName": "test",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "MpiDefault": "none",
    "SwitchType": "switch/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "AccountingStorageType": "accounting_storage/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "ReturnToService": "2",
    "MinJobAge": "86400",
    "KillWait": "2",
    "SlurmdTimeout": "10",
    "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
}


class LocalSlurm:
    """The daemons of one cluster, all children of this process."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder, self.settings = folder, settings
        self.daemons: list[subprocess.Popen[bytes]] = []
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        os.environ["PATH"] += os.pathsep + "/usr/sbin"

    def start(self) -> None:
        """Start all daemons; raises SystemExit if the nodes do not become idle."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            sys.exit(f"not installed: {', '.join(missing)}")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        places = [f"--{what}={self.folder / 'munge'}.{end}" for what, end in MUNGE_PLACES]
        self.run("munged", "--foreground", "--force", f"--key-file={key}", *places)
        for _ in range(TRIES):
            (self.folder / "slurm.conf").write_text(self.configuration())
            started = [self.run("slurmctld", "-D"), *(self.start_node(node) for node in NODES)]
            if self.is_idle(started):
                return
            for daemon in started:
                daemon.kill()
                daemon.wait()
        sys.exit(f"the nodes did not become idle; see the logs in {self.folder}")

    def configuration(self) -> str:
        host, user, ports = socket.gethostname().partition(".")[0], getpass.getuser(), free_ports(1 + len(NODES))
        settings = {
            **SETTINGS,
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthInfo": f"socket={self.folder / 'munge.sock'}",
            "SlurmctldPort": str(ports[0]),
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool-%n",
            "SlurmdPidFile": f"{self.folder}/slurmd-%n.pid",
            **self.settings,
        }
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=2000"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        partition = f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
        return "\n".join([*(f"{name}={value}" for name, value in settings.items()), *nodes, partition, ""])

    def start_node(self, node: str) -> subprocess.Popen[bytes]:
        return self.run("slurmd", "-D", "-N", node)

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon that Linux kills when this process ends, even if it is killed."""
        name = command[-1] if command[0] == "slurmd" else command[0]
        libc = ctypes.CDLL(None)
        with (self.folder / f"{name}.log").open("ab") as log:
            daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self.daemons.append(daemon)
        return daemon

    def is_idle(self, started: list[subprocess.Popen[bytes]]) -> bool:
        """Wait until all nodes are idle; False as soon as a daemon has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and all(daemon.poll() is None for daemon in started):
            asked = subprocess.run(
                ["sinfo", "--noheader", "--format=%T %D"], capture_output=True, text=True, check=False
            )
            if asked.stdout.split() == ["idle", str(len(NODES))]:
                return True
            time.sleep(0.1)
        return False

    def serve(self) -> None:
        """Start nodes again on request, until stdin closes."""
        for line in sys.stdin:
            word, _, node = line.strip().partition(" ")
            if word == "start" and node in NODES:
                self.start_node(node)

    def end(self) -> None:
        """Kill every process below this one: jobs whose slurmd died are its children, since it is their subreaper."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := list(descendants(os.getpid()))) and time.monotonic() < deadline:
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)


MUNGE_PLACES = (("socket", "sock"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def descendants(parent: int) -> Iterator[int]:
    """Yield the processes below a process, at any depth."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(above, []).append(int(folder.name))
    below = list(children.get(parent, []))
    while below:
        process = below.pop()
        yield process
        below += children.get(process, [])


def main() -> None:
    folder, given = Path(sys.argv[1]).resolve(), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C ends the tests first; they close our stdin
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    slurm = LocalSlurm(folder, dict(setting.split("=", 1) for setting in given))
    try:
        slurm.start()
        print(os.environ["SLURM_CONF"], flush=True)  # noqa: T201
        slurm.serve()
    finally:
        slurm.end()


if __name__ == "__main__":
    main()
