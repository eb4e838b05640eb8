"""The progress of a run, from its output folder alone: what is done, who makes what, what was lost or failed.

It takes a listing of metadata/ and one of attempts/, and reads the files of attempts and the stats of some partitions.
"""

from __future__ import annotations

import posixpath
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from clip_retrieval.errors import StorageError
from clip_retrieval.inference.all_files import Checked
from clip_retrieval.inference.attempts import MOST_ATTEMPTS, Attempt
from clip_retrieval.inference.saved_plan import read_plan
from clip_retrieval.inference.small_files import read_there
from clip_retrieval.inference.telemetry.wip import SECONDS_BETWEEN_UPLOADS, SECONDS_BETWEEN_WRITES
from clip_retrieval.json_files import parse_json
from clip_retrieval.layout import (
    ATTEMPTS_FOLDER,
    METADATA_FOLDER,
    PARTITION_NAME,
    EmbeddingsFolder,
    partition_named,
    read_manifest,
)
from clip_retrieval.metadata.parquet import read_footer

MOST_STATS = 32  # finished partitions whose stats are read, to know their mean
MODIFIED = ("mtime", "LastModified", "last_modified", "updated")  # what stores call the time of a file

State = Literal["running", "copy", "lost", "failed", "stopped"]
STATES: tuple[State, ...] = ("running", "copy", "lost", "failed", "stopped")


@dataclass(frozen=True, kw_only=True)
class Work:
    """An attempt, and what has become of it."""

    partition: str
    attempt: Attempt
    silent_seconds: float  # since its file was written
    state: State = "running"
    is_given_up: bool = False  # no worker of its run tries the partition again

    @property
    def is_alive(self) -> bool:
        return self.attempt.end is None and not self.attempt.is_silent(self.silent_seconds)

    @property
    def samples(self) -> int:
        return count_samples(self.attempt.figures or {})

    @property
    def rate(self) -> float:
        return float((self.attempt.figures or {}).get("rate", 0.0))

    @property
    def reason(self) -> str:
        """Why it ended, as far as that is known."""
        is_gone = self.state == "lost" and self.attempt.is_process_gone
        return self.attempt.reason or ("its process is gone" if is_gone else "")

    def to_json(self) -> dict[str, Any]:
        attempt = self.attempt
        return {
            "partition": partition_named(self.partition).id,
            "attempt": attempt.number,
            "host": attempt.host,
            "pid": attempt.pid,
            "device": attempt.device,
            "task": attempt.task,
            "since": attempt.since,
            "silent_seconds": round(self.silent_seconds, 1),
            "samples": self.samples,
            "rate": round(self.rate, 3),
            "reason": self.reason,
            "given_up": self.is_given_up,
        }


@dataclass(frozen=True, kw_only=True)
class Means:
    """Figures of finished partitions, from the stats of some."""

    samples: float
    rate: float  # samples a second of one worker


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run as its folder shows it."""

    output_folder: str
    partition_count: int
    done: int
    works: Sequence[Work]
    means: Means | None  # None until a partition is done
    sample_count: int | None  # samples of the input, if that is known before it is read
    now: float
    row_count: int | None = None  # exact, of a complete run of at most MOST_STATS partitions
    checked: Checked | None = None  # the check of all files, if requested

    def those(self, state: State) -> list[Work]:
        return [work for work in self.works if work.state == state]

    @property
    def waiting(self) -> int:
        """Partitions that nobody makes; those whose worker was asked to end are among them."""
        return self.partition_count - self.done - sum(len(self.those(s)) for s in ("running", "lost", "failed"))

    @property
    def is_complete(self) -> bool:
        return self.done == self.partition_count

    @property
    def mean(self) -> float:
        """Samples of a partition, about."""
        if self.sample_count is not None:
            return self.sample_count / max(1, self.partition_count)
        return 0.0 if self.means is None else self.means.samples

    @property
    def total(self) -> int | None:
        """Samples in all, about."""
        return round(self.mean * self.partition_count) if self.mean else self.sample_count

    @property
    def samples(self) -> int:
        """Samples that are done, about, with those of partitions under way."""
        return round(self.mean * self.done) + sum(work.samples for work in self.those("running"))

    @property
    def rate(self) -> float:
        """Samples a second of all workers; one that just began counts with the mean rate of finished partitions."""
        usual = 0.0 if self.means is None else self.means.rate
        return sum(work.rate or usual for work in self.those("running"))

    @property
    def seconds_left(self) -> float | None:
        return max(0, self.total - self.samples) / self.rate if self.total is not None and self.rate else None

    def to_json(self) -> dict[str, Any]:
        return {
            "output_folder": self.output_folder,
            "partition_count": self.partition_count,
            "done": self.done,
            **{state: len(self.those(state)) for state in ("running", "lost", "failed")},
            "waiting": self.waiting,
            "is_complete": self.is_complete,
            "samples": self.samples,
            "total_samples": self.total,
            "rows": self.row_count,
            "rate": round(self.rate, 3),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left),
            **{f"{state}_partitions": [work.to_json() for work in self.those(state)] for state in STATES},
            **({} if self.checked is None else {"checked": self.checked.to_json()}),
        }


def read_status(url: str) -> RunStatus:
    """Look at a run; raises StorageError if the folder holds none."""
    folder = EmbeddingsFolder(url)
    plan, manifest = read_plan(folder), read_manifest(folder) or {}
    attempts = read_attempts(folder)
    planned = manifest.get("partition_count") if plan is None else plan.partition_count  # an index's manifest has none
    if planned is None and not attempts:
        raise StorageError(
            f"{folder.url} holds no run of `inference`: no plan, no manifest with a partition_count and no attempt; "
            "give the output folder of `inference`"
        )
    names = [match[1] for name in folder.names(METADATA_FOLDER, ".parquet") if (match := PARTITION_NAME.match(name))]
    is_countable = max(planned or 0, len(names)) == len(names) <= MOST_STATS
    return RunStatus(
        output_folder=folder.url,
        partition_count=max(planned or 0, len(names)),
        done=len(names),
        works=[work for name, works in attempts.items() for work in judge(works, is_done=is_among(name, names))],
        means=read_means(folder, names),
        sample_count=None if plan is None else plan.sample_count,
        now=time.time(),
        row_count=count_rows(folder, names) if is_countable else None,
    )


def count_rows(folder: EmbeddingsFolder, names: Sequence[str]) -> int | None:
    """Return the rows of partitions, from the footers of their metadata; None if one cannot be read."""
    try:
        return sum(read_footer(folder, folder.metadata_name(partition_named(name))).row_count for name in names)
    except StorageError:
        return None  # the check of all files names it


def seconds_between_looks(url: str) -> float:
    """Return how often to look at a run: as often as workers write."""
    return SECONDS_BETWEEN_WRITES if EmbeddingsFolder(url).is_local else SECONDS_BETWEEN_UPLOADS


def is_among(name: str, names: Sequence[str]) -> bool:
    """Say whether a sorted list has a name."""
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


def read_attempts(folder: EmbeddingsFolder) -> dict[str, list[Work]]:
    """Return all attempts by partition, in the order in which they began."""
    listed = {info["name"]: modified(info) for info in folder.entries(ATTEMPTS_FOLDER, below=True)}
    times = {posixpath.relpath(path, folder.root): at for path, at in listed.items() if path.endswith(".json")}
    now = max([time.time(), *(at for at in times.values() if at is not None)])  # clocks of stores and hosts differ
    found: dict[str, list[Work]] = defaultdict(list)
    for name, data in read_there(folder, [*times]).items():
        try:
            attempt = parse_json(data, Attempt, name)
        except StorageError:
            continue  # not one of ours
        at, partition = times[name], name.split("/")[1]
        silent = now - (attempt.told if at is None else at)
        found[partition].append(Work(partition=partition, attempt=attempt, silent_seconds=silent))
    return {name: sorted(found[name], key=lambda work: work.attempt.since) for name in sorted(found)}


def modified(info: Mapping[str, Any]) -> float | None:
    """Return when a file was written, in seconds since 1970, as its store says; None if it does not."""
    value = next((info[name] for name in MODIFIED if info.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else value


def judge(works: Sequence[Work], *, is_done: bool) -> Iterable[Work]:
    """Yield what is to be shown of a partition's attempts: the ones that are running, or else how the last one ended.

    Of several running ones the newest counts. The others are copies: a node that was given up may go on writing.
    """
    alive = [work for work in works if work.is_alive]
    for work in alive:
        yield replace(work, state="copy" if is_done or work is not alive[-1] else "running")
    if alive or is_done:
        return
    last = works[-1]
    spoken = sum(work.attempt.run == last.attempt.run and work.attempt.counts for work in works)
    yield replace(last, state=last.attempt.end or "lost", is_given_up=spoken >= MOST_ATTEMPTS)


def read_means(folder: EmbeddingsFolder, names: Sequence[str]) -> Means | None:
    """Return the means of some finished partitions, from all over the run."""
    step = max(1, len(names) // MOST_STATS)
    partitions = [partition_named(name) for name in names[::step]]
    contents = read_there(folder, [folder.stats_name(partition) for partition in partitions])
    stats = list[dict[str, Any]]()
    for name, data in contents.items():
        with suppress(StorageError):  # the check of all files names damaged ones
            stats.append(parse_json(data, dict[str, Any], folder.path(name)))
    if not stats:
        return None
    samples, seconds = sum(map(count_samples, stats)), sum(part.get("total_duration", 0.0) for part in stats)
    return Means(samples=samples / len(stats), rate=samples / seconds if seconds else 0.0)


def count_samples(stats: Mapping[str, Any]) -> int:
    return int(stats.get("sample_count", 0)) + int(stats.get("skipped_count", 0))
