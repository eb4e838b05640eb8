"""Workers as array tasks of Slurm: submitted, followed, and submitted again for what they left.

The output folder says what is done. squeue only says whether a task may still work on the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clip_retrieval.clusters.slurm import SlurmRefusedError, SlurmTask, cancel_pending
from clip_retrieval.errors import ConfigError, WorkerError
from clip_retrieval.inference.distributors.arrivals import Arrivals
from clip_retrieval.inference.distributors.slurm_ends import (
    Round,
    attempts_of,
    count_all,
    count_states,
    explain,
    given_up,
    name_jobs,
)
from clip_retrieval.inference.distributors.slurm_jobs import SlurmJobs, run_of
from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.words import counted

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = (0.5, 15.0)  # the least and the most
SHARE_OF_WAIT = 0.1  # the next look comes after a tenth of the time waited so far
SECONDS_OF_SILENCE = 600.0  # slurmctld may be down that long


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Jobs that go on by themselves; `is_new` is False if an earlier command submitted them."""

    run: PlannedRun
    jobs: Sequence[int]
    is_new: bool

    def to_json(self) -> dict[str, object]:
        return {"output_folder": self.run.folder.url, "jobs": [*self.jobs], "submitted_now": self.is_new}

    def sentence(self) -> str:
        word = "submitted" if self.is_new else "still in the queue:"
        return f"{word} {name_jobs(self.jobs)}, {how_to_follow(self.run, self.jobs)}"


def submit_or_find(run: PlannedRun) -> Submitted:
    """Submit the missing partitions, unless tasks of an earlier command may still make them."""
    jobs = SlurmJobs(plan=run)
    tasks = [task for task in jobs.tasks() if not task.has_ended]
    if tasks:
        run = replace(run, run=run_of(tasks[0]))
        return Submitted(run=run, jobs=sorted({task.job for task in tasks}), is_new=False)
    return Submitted(run=run, jobs=jobs.submit(len(run.missing)), is_new=True)


def make_on_slurm(run: PlannedRun, live: Live) -> None:
    """Make the missing partitions on Slurm, and wait; raises WorkerError on those that could not be made."""
    submitted = submit_or_find(run)
    logger.info("%s", submitted.sentence())
    Waiting(submitted.run, live).wait(set(submitted.jobs))


def how_to_follow(run: PlannedRun, jobs: Sequence[int]) -> str:
    """Return what a user can do with jobs that run by themselves."""
    return (
        f"logs in {SlurmJobs(plan=run).folder}; `clip-retrieval status {run.folder.url}` shows how far it is, the same "
        f"command comes back to it, `scancel {' '.join(map(str, jobs))}` ends it"
    )


def words_when_left(run: PlannedRun) -> str:
    """Return the message for a user who stops waiting: the tasks go on."""
    try:
        tasks = [task for task in SlurmJobs(plan=run).tasks() if not task.has_ended]
    except ConfigError as error:
        return f"stopped waiting, and the tasks go on ({error}); give the same command again to come back"
    if not tasks:
        return "stopped; no task is in the queue; give the same command again to go on"
    jobs = sorted({task.job for task in tasks})
    return f"stopped waiting, and {name_jobs(jobs)} goes on ({count_states(tasks)}); {how_to_follow(run, jobs)}"


class Waiting:
    """Follows arrays, and submits what they left, until all partitions are there or no task can make the rest."""

    def __init__(self, run: PlannedRun, live: Live) -> None:
        self.run, self.jobs, self.arrivals = run, SlurmJobs(plan=run), Arrivals(run, live)
        self.answered = time.monotonic()
        self.told = ""

    def wait(self, jobs: set[int]) -> None:
        fruitless, begun, missing = 0, 0, self.arrivals.missing()
        while missing:
            tasks = self.follow(jobs)
            left, attempts = self.arrivals.missing(), attempts_of(self.run, missing)
            if not left:
                break
            made = len(missing) - len(left)
            fruitless = 0 if made else fruitless + 1
            is_left = {partition.id for partition in left}
            end = Round(
                tasks=tasks,
                left=len(left),
                given_up=sum(number in is_left for number in given_up(attempts)),
                has_begun=made > 0 or count_all(attempts) > begun,
                fruitless=fruitless,
            )
            why = end.why_hopeless()
            if why is not None:
                raise WorkerError(explain(why, tasks, left, self.run))
            jobs, missing, begun = set(self.jobs.submit(len(left))), left, count_all(attempts)
            logger.warning(
                "the tasks ended (%s), and %s not made; submitted again as %s",
                count_states(tasks), counted(len(left), "partition is", "partitions are"), name_jobs(jobs),
            )  # fmt: skip
        self.cancel_rest()

    def follow(self, jobs: set[int]) -> Sequence[SlurmTask]:
        """Look at queue and folder until all partitions are there or all tasks have ended; return the tasks."""
        begun, was_stuck = time.monotonic(), False
        least, most = SECONDS_BETWEEN_LOOKS
        while True:
            tasks = self.ask(jobs)
            self.arrivals.look()  # after the queue, so that everything that ended tasks made is there
            active = [task for task in tasks or () if not task.has_ended]
            if tasks is not None and not (active and self.arrivals.are_missing):
                return tasks
            is_stuck = bool(active) and all(task.is_stuck for task in active)
            if is_stuck and was_stuck:
                raise WorkerError(
                    f"{name_jobs(jobs)} waits for somebody to act ({active[0].reason}); see `scontrol show job "
                    f"{active[0].name}`, release or cancel it, and give the same command again"
                )
            was_stuck = is_stuck
            time.sleep(min(most, max(least, SHARE_OF_WAIT * (time.monotonic() - begun))))

    def ask(self, jobs: set[int]) -> Sequence[SlurmTask] | None:
        """Return the jobs' tasks; None while slurmctld does not answer, such as during a restart."""
        try:
            tasks = [task for task in self.jobs.tasks() if task.job in jobs]
        except SlurmRefusedError as error:
            silence = time.monotonic() - self.answered
            if silence > SECONDS_OF_SILENCE:
                raise WorkerError(
                    f"{error}, for {silence / 60:.0f} minutes now; {name_jobs(jobs)} may still go on: give the "
                    "same command again to come back to it"
                ) from error
            logger.debug("%s", error)
            return None
        self.answered = time.monotonic()
        states = count_states(tasks)
        if states != self.told and self.jobs.config.slurm_verbose_wait:
            logger.info("tasks: %s", states)
        self.told = states
        return tasks

    def cancel_rest(self) -> None:
        """Cancel tasks that have not begun: there is nothing left for them."""
        try:
            pending = {task.job for task in self.jobs.tasks() if task.state == "PENDING"}
            if pending:
                cancel_pending(pending)
        except SlurmRefusedError as error:
            logger.debug("%s", error)
