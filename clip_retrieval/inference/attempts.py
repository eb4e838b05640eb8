"""Attempts at partitions: who makes which, since when, and how it ended, as small files in the output folder.

Each attempt has its own file in attempts/{P}/, rewritten while the partition is made and removed when it is whole:
there are as many files as workers and failures. Workers use them to decide what to leave alone,
but not what is done.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import uuid4

from clip_retrieval.errors import ClipRetrievalError, StorageError, one_line
from clip_retrieval.inference.telemetry.live import Report, repeating
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.telemetry.wip import SECONDS_BETWEEN_UPLOADS, SECONDS_BETWEEN_WRITES
from clip_retrieval.json_files import parse_json
from clip_retrieval.layout import ATTEMPTS_FOLDER, EmbeddingsFolder, Partition
from clip_retrieval.process.interrupts import ending_with, stop_behind
from clip_retrieval.scratch import HOST, is_alive

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 2  # in one run; a partition that failed, or lost its workers, this often is given up
SECONDS_FOR_A_WRITE = 1.0
MOST_EXPLAINED, MOST_NAMED = 3, 20  # partitions in an error message
BEATS_UNTIL_LOST = 6  # heartbeats that a worker may miss before it counts as lost
RUN_VARIABLE = "CLIP_RETRIEVAL_RUN"  # id of the run, set by an engine that starts workers by command lines
TASK_VARIABLES = (
    "CLIP_RETRIEVAL_TASK",  # the task's name in an engine without its own variables
    "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_PROCID",
    "SLURMD_NODENAME", "SPARK_EXECUTOR_ID", "RAY_JOB_ID", "RAY_NODE_ID",
)  # fmt: skip


def new_run() -> str:
    """Return the id of this run: that of the engine's run, if one started this process, else a new one."""
    return os.environ.get(RUN_VARIABLE) or f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid4().hex[:6]}"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a partition, as its worker last reported it."""

    run: str
    number: int  # from 1, within the run
    host: str
    pid: int
    device: str
    task: dict[str, str]  # the engine's ids
    since: float  # seconds since 1970, by the worker's clock
    told: float  # when this was written, by the same clock
    beat_seconds: float  # how often it is written
    end: Literal["failed", "stopped"] | None = None
    reason: str = ""
    figures: dict[str, Any] | None = None  # stats so far

    @property
    def counts(self) -> bool:
        """Say whether it counts against the partition; so does an attempt under way, whose worker may be dead."""
        return self.end != "stopped"

    @property
    def is_process_gone(self) -> bool:
        """Say whether its process ran on this machine and is gone; for other machines this is unknown."""
        return self.host == HOST and not is_alive(self.pid)

    def is_silent(self, seconds: float) -> bool:
        """Say whether a worker that wrote so long ago, and reported no end, counts as lost."""
        return self.end is None and (self.is_process_gone or seconds > BEATS_UNTIL_LOST * self.beat_seconds)


def attempts_at(folder: EmbeddingsFolder, partition: Partition) -> dict[str, Attempt]:
    """Return the attempts at a partition by file name, oldest number first; it takes one listing."""
    place, found = folder.attempts_name(partition), {}
    for name in folder.names(place, ".json"):
        attempt = read_attempt(folder, f"{place}/{name}")
        if attempt is not None:
            found[f"{place}/{name}"] = attempt
    return dict(sorted(found.items(), key=lambda item: (item[1].number, item[1].since)))


def read_attempt(folder: EmbeddingsFolder, name: str) -> Attempt | None:
    """Return an attempt; None if its worker removed the file meanwhile, or it is not one of ours."""
    try:
        return parse_json(folder.read_bytes(name), Attempt, folder.path(name))
    except FileNotFoundError:
        return None
    except StorageError as error:
        logger.debug("%s", error)
        return None


def is_given_up(folder: EmbeddingsFolder, partition: Partition, run: str) -> bool:
    """Say, and log, whether so many attempts of this run at a partition failed that no other is to be made."""
    spoken = [attempt for attempt in attempts_at(folder, partition).values() if attempt.run == run and attempt.counts]
    if len(spoken) < MOST_ATTEMPTS:
        return False
    logger.warning("partition %s is given up after %s attempts (%s)", partition.id, len(spoken), describe_ends(spoken))
    return True


def describe_ends(attempts: Iterable[Attempt]) -> str:
    return ", then ".join(f"on {attempt.host}: {attempt.reason or 'its worker died'}" for attempt in attempts)


def explain_left(folder: EmbeddingsFolder, left: Sequence[Partition], run: str) -> str:
    """Return a sentence that names the partitions that a run did not make, with the reasons for the first of them."""
    why = []
    for partition in left[:MOST_EXPLAINED]:
        spoken = [attempt for attempt in attempts_at(folder, partition).values() if attempt.run == run]
        if spoken:
            why.append(f"partition {partition.id} {describe_ends(spoken)}")
    named = ", ".join(str(partition.id) for partition in left[:MOST_NAMED])
    more = f" and {len(left) - MOST_NAMED:,} more" if len(left) > MOST_NAMED else ""
    because = f" ({'; '.join(why)})" if why else ""
    return f"not made: partitions {named}{more}{because}; what is finished is kept, run the same command to try again"


class Marker:
    """The file of one attempt. Safe to use from any thread."""

    def __init__(self, folder: EmbeddingsFolder, name: str, attempt: Attempt) -> None:
        self.folder, self.name, self.attempt = folder, name, attempt
        self.stats: Stats | None = None
        self.lock = threading.Lock()  # an older heartbeat must not come after the end

    def write(self) -> None:
        """Write the current attempt; errors of writing are ignored, since the run does not depend on it."""
        has_lock = self.lock.acquire(timeout=SECONDS_FOR_A_WRITE)  # a store that hangs must not hold up the end
        try:
            figures = None if self.stats is None else self.stats.so_far()
            self.folder.write_json(self.name, asdict(replace(self.attempt, told=time.time(), figures=figures)))
        except (ClipRetrievalError, OSError) as error:
            logger.debug("%s cannot be written: %s", self.name, error)
        finally:
            if has_lock:
                self.lock.release()

    def end(self, end: Literal["failed", "stopped"], reason: str) -> None:
        self.attempt = replace(self.attempt, end=end, reason=reason)
        self.write()


class MarkedReport:
    """A worker's report that also hands the figures of the partition to its marker."""

    def __init__(self, report: Report, marker: Marker) -> None:
        self.report, self.marker = report, marker
        self.estimate_total: Callable[[], int | None] = report.estimate_total

    def begin(self, stats: Stats) -> None:
        self.marker.stats = stats
        stats.run = self.marker.attempt.run
        self.report.begin(stats)

    def advance(self, rows: int, dropped: int) -> None:
        self.report.advance(rows, dropped)

    def end(self) -> None:
        self.report.end()


@contextmanager
def attempting(
    folder: EmbeddingsFolder, partition: Partition, run: str, device: str, report: Report
) -> Iterator[Report]:
    """Mark an attempt at a partition while the block makes it, and how it ends; yield the report to use meanwhile.

    A successful attempt leaves no file. An interrupted one does not count.
    """
    before = attempts_at(folder, partition)
    marker = make_marker(folder, partition, run, device, list(before.values()))
    marker.write()

    def stop() -> str:
        marker.end("stopped", "the worker was asked to end")
        return "stopped; what is finished is kept, run the same command to go on"

    try:
        with ending_with(stop), repeating(marker.attempt.beat_seconds, marker.write):
            yield MarkedReport(report, marker)
    except BaseException as error:
        if isinstance(error, Exception) and stop_behind(error) is None:
            marker.end("failed", f"{type(error).__name__}: {one_line(error)}")
        elif marker.attempt.end is None:
            stop()
        raise
    over = [name for name, attempt in before.items() if attempt.end or attempt.is_silent(time.time() - attempt.told)]
    remove_markers(folder, [*over, marker.name])


def make_marker(
    folder: EmbeddingsFolder, partition: Partition, run: str, device: str, before: Sequence[Attempt]
) -> Marker:
    now, number = time.time(), 1 + max((attempt.number for attempt in before if attempt.run == run), default=0)
    attempt = Attempt(
        run=run,
        number=number,
        host=HOST,
        pid=os.getpid(),
        device=device,
        task={name: os.environ[name] for name in TASK_VARIABLES if os.environ.get(name)},
        since=now,
        told=now,
        beat_seconds=SECONDS_BETWEEN_WRITES if folder.is_local else SECONDS_BETWEEN_UPLOADS,
    )
    name = f"{folder.attempts_name(partition)}/{number}_{HOST}_{os.getpid()}_{uuid4().hex[:8]}.json"
    return Marker(folder, name, attempt)


def remove_markers(folder: EmbeddingsFolder, names: Sequence[str]) -> None:
    """Remove markers and, on this machine, the folders that this leaves empty; other workers may do the same."""
    for name in names:
        with suppress(FileNotFoundError, StorageError):
            folder.fs.rm_file(folder.path(name))
    folder.drop_empty_folders([*{str(PurePosixPath(name).parent) for name in names}, ATTEMPTS_FOLDER])


def forget_attempts(folder: EmbeddingsFolder, done: Sequence[Partition]) -> None:
    """Remove what attempts left at partitions that are now whole."""
    places = {folder.attempts_name(partition): partition for partition in done}
    for place in folder.subfolders(ATTEMPTS_FOLDER):
        if f"{ATTEMPTS_FOLDER}/{place}" in places:
            remove_markers(folder, [*attempts_at(folder, places[f"{ATTEMPTS_FOLDER}/{place}"])])
