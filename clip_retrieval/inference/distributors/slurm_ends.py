"""How Slurm's tasks ended, and whether it is worth submitting the rest again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_retrieval.clusters.slurm import SlurmTask, describe_task
from clip_retrieval.errors import one_line
from clip_retrieval.inference.attempts import MOST_ATTEMPTS, Attempt, attempts_at, explain_left
from clip_retrieval.inference.distributors.slurm_jobs import log_of
from clip_retrieval.inference.plan import Plan
from clip_retrieval.layout import ATTEMPTS_FOLDER, Partition
from clip_retrieval.words import counted, printable

MOST_FRUITLESS_ROUNDS = 3  # submissions in a row that made no partition
MOST_TOLD = 3  # tasks whose end is reported
BYTES_OF_A_LOG = 8192  # the end of a log, where its last line is looked for

Attempts = dict[int, list[Attempt]]  # partition id -> its attempts


@dataclass(frozen=True, kw_only=True)
class Round:
    """What became of one submission."""

    tasks: Sequence[SlurmTask]
    left: int  # partitions that are not made
    given_up: int  # of these, partitions that failed, or lost their workers, too often
    has_begun: bool  # whether any partition was begun
    fruitless: int  # rounds in a row, with this one, that made no partition

    def why_hopeless(self) -> str | None:
        """Return why submitting again would not help, or is not wanted; None if it is worth it."""
        states = Counter(task.state for task in self.tasks)
        if self.given_up == self.left:
            return f"each of these partitions failed, or lost its worker, {MOST_ATTEMPTS} times"
        if states["CANCELLED"] > states.total() / 2:
            return "the tasks were cancelled"
        if states["FAILED"] and not self.has_begun:
            return "no task got far enough to begin a partition"
        if self.fruitless == MOST_FRUITLESS_ROUNDS:
            return f"the tasks were submitted {self.fruitless} times and made no further partition"
        return None


def attempts_of(plan: Plan, partitions: Iterable[Partition]) -> Attempts:
    """Return the attempts of this run at partitions, if there are any; it takes one listing for each partition."""
    names = set(plan.folder.subfolders(ATTEMPTS_FOLDER))
    found = {
        partition.id: [*attempts_at(plan.folder, partition).values()]
        for partition in partitions
        if partition.name in names
    }
    return {number: [one for one in attempts if one.run == plan.run] for number, attempts in found.items()}


def count_all(attempts: Attempts) -> int:
    return sum(len(made) for made in attempts.values())


def given_up(attempts: Attempts) -> list[int]:
    """Return the partitions that no worker of the run will try again."""
    return [number for number, made in attempts.items() if sum(one.counts for one in made) >= MOST_ATTEMPTS]


def explain(why: str, tasks: Sequence[SlurmTask], left: Sequence[Partition], plan: Plan) -> str:
    """Return the error message of a run that could not be finished: why, how tasks ended, and what is missing."""
    failed = [task for task in tasks if task.has_ended and task.state not in ("COMPLETED", "CANCELLED")]
    ends = [f"{describe_task(task)} ({last_words(log_of(task))})" for task in failed[:MOST_TOLD]]
    return "; ".join([why, *ends, explain_left(plan.folder, left, plan.run)])


def name_jobs(jobs: Iterable[int]) -> str:
    numbers = sorted(jobs)
    return f"{'job' if len(numbers) == 1 else 'jobs'} {', '.join(map(str, numbers))}"


def count_states(tasks: Iterable[SlurmTask]) -> str:
    """Return how many tasks are in which state: `2 running, 5 pending`."""
    states = Counter(task.state.lower() for task in tasks)
    return ", ".join(f"{count} {state}" for state, count in states.most_common()) or counted(0, "task")


def last_words(log: Path) -> str:
    """Return the last line of a task's log and its path."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - BYTES_OF_A_LOG))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return f"it wrote no log {log}"
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"last line of {log}: {printable(one_line(last))}" if last else f"its log {log} is empty"
