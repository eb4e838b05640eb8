"""Slurm's own commands: sbatch to submit, squeue and scontrol for what became of it; sacct is not needed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_retrieval.clusters.slurm_script import USUAL_ARRAY_SIZE
from clip_retrieval.errors import ConfigError, WorkerError, one_line

SECONDS_OF_A_COMMAND = 120.0  # slurmctld may be busy; no command may block forever

ENDED = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT",
    }
)  # fmt: skip
# Reasons for which a pending task never starts unless somebody acts; squeue may put a detail behind them.
STUCK = (
    "JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "job requeued in held state", "BadConstraints",
    "DependencyNeverSatisfied", "PartitionTimeLimit", "PartitionNodeLimit", "InvalidAccount", "InvalidQOS",
)  # fmt: skip
SQUEUE_FORMAT = "%i|%T|%N|%o|%r"
TASK_ID = re.compile(r"(\d+)(?:_(\d+))?$")


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """One array task as squeue shows it."""

    job: int
    index: int  # 0 for a job that is not an array
    state: str
    node: str
    script: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.job}_{self.index}"

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for somebody to act, such as a task that is held."""
        return self.state == "PENDING" and self.reason.startswith(STUCK)


class SlurmRefusedError(ConfigError):
    """A command of Slurm's failed; the message is Slurm's own."""


def submit(script: Path) -> int:
    """Submit a script; return the job's id. Raises ConfigError with Slurm's own words."""
    said = ask("sbatch", "--parsable", str(script))
    found = re.match(r"\d+", said.strip())  # a federation adds `;cluster`
    if found is None:
        raise WorkerError(f"sbatch did not name a job but said: {one_line(said)}")
    return int(found[0])


def list_tasks(script_name: str) -> list[SlurmTask]:
    """Return this user's tasks of all jobs whose script has this file name, ended ones for as long as Slurm keeps them.

    slurmctld forgets an ended job after MinJobAge, five minutes by default.
    """
    said = ask(
        "squeue", "--user", str(os.getuid()), "--states", "all", "--array", "--noheader", "--format", SQUEUE_FORMAT
    )
    return [task for task in parse_tasks(said.splitlines()) if Path(task.script).name == script_name]


def parse_tasks(lines: Iterable[str]) -> list[SlurmTask]:
    """Read lines of squeue in SQUEUE_FORMAT; other lines are left out."""
    tasks = []
    for line in lines:
        fields = line.split("|")
        task_id = TASK_ID.match(fields[0].strip())
        if task_id is None or len(fields) < SQUEUE_FORMAT.count("|") + 1:
            continue
        script, reason = "|".join(fields[3:-1]), fields[-1].strip()  # a path may hold a |
        task = SlurmTask(
            job=int(task_id[1]),
            index=int(task_id[2] or 0),
            state=fields[1],
            node=fields[2],
            script=script,
            reason=reason,
        )
        tasks.append(task)
    return tasks


def largest_array() -> int:
    """Return how many tasks an array may have here: their numbers are below MaxArraySize, their count may be less."""
    said = ask("scontrol", "show", "config")
    limits = re.findall(r"^MaxArraySize\s*=\s*(\d+)", said, re.MULTILINE) or [str(USUAL_ARRAY_SIZE)]
    limits += re.findall(r"\bmax_array_tasks=(\d+)", said)
    return max(1, min(map(int, limits)))


def nodes_outside(names: str, partition: str | None) -> list[str]:
    """Return the nodes of a partition, or of the cluster, that a list such as n[1-3] does not name.

    sbatch's --nodelist means all of its nodes at once; a task that may run on any of them has to exclude all others.
    """
    of_partition = ("--partition", partition) if partition else ()
    there = ask("sinfo", "--noheader", "--Node", "--format", "%N", *of_partition).split()
    return sorted({*there} - {*ask("scontrol", "show", "hostnames", names).split()})


def cancel_pending(jobs: Iterable[int]) -> None:
    """Cancel the tasks of these jobs that have not begun."""
    ask("scancel", "--state=PENDING", *map(str, jobs))


def describe_task(task: SlurmTask) -> str:
    """Return how a task ended: its state and, as far as Slurm still knows, exit code or signal, node and reason."""
    try:
        facts = parse_facts(ask("scontrol", "--oneliner", "show", "job", task.name))
    except ConfigError:
        facts = {}
    return f"task {task.name} {describe_facts({'JobState': task.state, 'NodeList': task.node, **facts})}"


def parse_facts(line: str) -> dict[str, str]:
    """Read `scontrol --oneliner show job`; of several lines the first."""
    words = line.strip().splitlines()[0].split(" ") if line.strip() else []
    pairs = (word.partition("=") for word in words)
    return {name: value for name, mark, value in pairs if mark}


def describe_facts(facts: dict[str, str]) -> str:
    """Return how a job ended, in words: `FAILED with exit code 3 on n1`."""
    code, _, signal = facts.get("ExitCode", "0:0").partition(":")
    how = f" with exit code {code}" if code != "0" else f" by signal {signal}" if signal not in ("", "0") else ""
    node = facts.get("NodeList", "")
    where = f" on {node}" if node not in ("", "(null)") else ""
    return f"ended as {facts['JobState']}{how}{where}"


def ask(*command: str) -> str:
    """Run a command of Slurm's; return its output. Raises ConfigError if it is missing, does not answer or refuses."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_OF_A_COMMAND,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {command[0]} on this machine; run this where Slurm's commands are, such as a login node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmRefusedError(f"{command[0]} does not answer for {SECONDS_OF_A_COMMAND:.0f} s") from error
    if done.returncode:
        raise SlurmRefusedError(f"{command[0]} refuses: {own_words(done.stderr.splitlines())}")
    return done.stdout


def own_words(lines: Sequence[str]) -> str:
    """Return Slurm's error messages as one line, without the program's name."""
    said = [re.sub(r"^\w+: (?:error|fatal): ", "", line.strip()) for line in lines if line.strip()]
    return "; ".join(dict.fromkeys(said))[:600].rstrip(".") or "without a word"
