"""What the executors do: make one part, put parts together. A task that is done already is not done again.

Every file appears whole under its name, so a task may be tried anywhere, any number of times, even at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import faiss

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.distributed.parts import make_part, merge_parts, open_bytes, read_range
from clip_retrieval.index.distributed.plan import MergedPart, RowRange, part_name
from clip_retrieval.index.files import write_file
from clip_retrieval.index.rows import Rows
from clip_retrieval.index.vectors import Vectors
from clip_retrieval.storage import Folder

SHARE_IT = "put --temporary_indices_folder on a file system that all of them and this machine share, or on a store"


class Shared(Protocol):
    """A value that every executor was sent once: Spark's Broadcast."""

    @property
    def value(self) -> bytes: ...


@dataclass(frozen=True)
class Job:
    """What all tasks of one index know; this machine and every executor see both folders under their names."""

    vectors: Vectors
    work: Folder
    merged_folder: str  # below `work`
    cores: int | None  # of each task; None: as many as there are
    watch: Callable[[Iterable[Rows]], Iterable[Rows]] = iter  # what rows pass on their way into the index

    def merged_name(self, merged: MergedPart) -> str:
        return f"{self.merged_folder}/{merged.name}"


def add_part(job: Job, trained: Shared, rows: RowRange) -> None:
    """Write the part that holds some rows; raises ClipRetrievalError where their files cannot be read."""
    if job.work.exists(part_name(rows)):
        return
    if not job.vectors.folder.exists():
        raise IndexBuildError(
            f"an executor sees no folder {job.vectors.folder.url}; share it with all of them, or use a store"
        )
    use_cores(job.cores)
    part = make_part(trained.value, job.watch(read_range(job.vectors, rows)), rows.start, rows.row_count)
    write_index(part, job.work, part_name(rows))


def merge_group(job: Job, merged: MergedPart) -> None:
    """Write one file of the finished index, of neighbouring parts."""
    if job.work.exists(job.merged_name(merged)):
        return
    use_cores(job.cores)
    parts = ((rows.start, read_part(job.work, rows)) for rows in merged.parts)
    write_index(merge_parts(parts, merged.rows.row_count), job.work, job.merged_name(merged))


def use_cores(cores: int | None) -> None:
    if cores is not None:
        faiss.omp_set_num_threads(cores)


def read_part(work: Folder, rows: RowRange) -> Any:
    name = part_name(rows)
    if not work.exists(name):
        raise IndexBuildError(f"an executor does not see {work.path(name)}, which another one wrote; {SHARE_IT}")
    try:
        return faiss.read_index(work.path(name)) if work.is_local else open_bytes(work.read_bytes(name))
    except RuntimeError as error:  # cut off, as after a loss of power
        work.remove(name)
        raise IndexBuildError(f"{work.path(name)} was damaged and is removed; run the same command again") from error


def write_index(index: Any, folder: Folder, name: str) -> None:
    with folder.staged(name) as staged:
        write_file(index, staged)
