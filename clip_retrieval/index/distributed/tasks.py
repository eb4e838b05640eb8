"""What the executors do: make one part, put parts together. A task that is done already is not done again.

Every file appears whole under its name, so a task may be tried anywhere, any number of times, even at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.distributed.parts import fill_lists, find_halves, merge_into, open_bytes, read_range
from clip_retrieval.index.distributed.plan import MergedPart, RowRange, codes_name, part_name
from clip_retrieval.index.files import has_ids, write_file
from clip_retrieval.index.stores import (
    Codes,
    code_bytes,
    encode,
    find_lists,
    find_store,
    holds_halves,
    write_codes,
    write_with_store,
)
from clip_retrieval.index.vectors import Vectors
from clip_retrieval.storage import Folder

SHARE_IT = "put --temporary_indices_folder on a file system that all of them and this machine share, or on a store"
BYTES_OF_CODES = 1 << 22  # that are copied at once

Batch = TypeVar("Batch", bound=Sized)  # of rows


class Shared(Protocol):
    """A value that every executor was sent once: Spark's Broadcast."""

    @property
    def value(self) -> bytes: ...


class Watch(Protocol):
    """What rows pass on their way into the index, of which a pass does some share."""

    def __call__(self, batches: Iterable[Batch], share: float) -> Iterable[Batch]: ...


def unwatched(batches: Iterable[Batch], share: float) -> Iterable[Batch]:  # noqa: ARG001 -- as Watch has it
    """Pass rows on."""
    return batches


@dataclass(frozen=True)
class Job:
    """What all tasks of one index know; this machine and every executor see both folders under their names."""

    vectors: Vectors
    work: Folder
    merged_folder: str  # below `work`
    cores: int | None  # of each task; None: as many as there are
    watch: Watch = unwatched

    def merged_name(self, merged: MergedPart) -> str:
        return f"{self.merged_folder}/{merged.name}"


def write_whole(job: Job, trained: Shared, path: Path, rows: RowRange) -> None:
    """Write an index that is made in one go; its rows are read once for the lists and once for the store."""
    index = open_bytes(trained.value)
    add_to_lists(job, index, rows)
    write_with_store(index, store_codes(job, index, rows), rows.row_count, path)


def add_part(job: Job, trained: Shared, rows: RowRange) -> None:
    """Write the part that holds some rows; raises ClipRetrievalError where their files cannot be read."""
    if job.work.exists(part_name(rows)):
        return
    if not job.vectors.folder.exists():
        raise IndexBuildError(
            f"an executor sees no folder {job.vectors.folder.url}; share it with all of them, or use a store"
        )
    use_cores(job.cores)
    index = open_bytes(trained.value)
    if find_store(index) is not None:
        with job.work.staged(codes_name(rows)) as staged, staged.open("wb") as file:
            write_codes(store_codes(job, index, rows), file)
    add_to_lists(job, index, rows)
    with job.work.staged(part_name(rows)) as staged:
        write_file(index if (lists := find_lists(index)) is None else lists, staged)


def merge_group(job: Job, trained: Shared, merged: MergedPart) -> None:
    """Write one file of the finished index, of neighbouring parts: in memory are its lists, and those of one part."""
    if job.work.exists(job.merged_name(merged)):
        return
    use_cores(job.cores)
    index = open_bytes(trained.value)
    lists, store = find_lists(index), find_store(index)
    for rows in merged.parts:
        part = read_part(job.work, rows, 0 if store is None else code_bytes(store))
        if lists is not None:
            merge_into(lists, part, 0 if has_ids(index) else rows.start - merged.rows.start)
    codes = () if store is None else (piece for rows in merged.parts for piece in read_codes(job.work, rows))
    with job.work.staged(job.merged_name(merged)) as staged:
        write_with_store(index, codes, merged.rows.row_count, staged)


def add_to_lists(job: Job, index: Any, rows: RowRange) -> None:
    if find_lists(index) is not None:
        fill_lists(index, job.watch(read_range(job.vectors, rows), share_of_pass(index)), rows.start)


def store_codes(job: Job, index: Any, rows: RowRange) -> Iterator[Codes]:
    """Yield the codes of some rows in the store of an index, if it has one."""
    if (store := find_store(index)) is None:
        return
    share = share_of_pass(index)
    if holds_halves(store) and (halves := find_halves(job.vectors, rows)) is not None:
        yield from job.watch(halves, share)
    else:
        yield from encode(store, job.watch(read_range(job.vectors, rows), share))


def share_of_pass(index: Any) -> float:
    """Return how much of a row is done when it has been read once."""
    return 0.5 if find_store(index) is not None and find_lists(index) is not None else 1.0


def use_cores(cores: int | None) -> None:
    if cores is not None:
        faiss.omp_set_num_threads(cores)


def read_part(work: Folder, rows: RowRange, bytes_of_code: int) -> Any:
    """Return the lists of a part whose codes, of so many bytes a row, are all there."""
    name = part_name(rows)
    if not work.exists(name):
        raise IndexBuildError(f"an executor does not see {work.path(name)}, which another one wrote; {SHARE_IT}")
    try:
        if bytes_of_code and work.sizes("", codes_name(rows)) != {codes_name(rows): bytes_of_code * rows.row_count}:
            raise RuntimeError(f"{codes_name(rows)} is not whole")
        return faiss.read_index(work.path(name)) if work.is_local else open_bytes(work.read_bytes(name))
    except RuntimeError as error:  # cut off, as after a loss of power
        work.remove(name)
        raise IndexBuildError(f"{work.path(name)} was damaged and is removed; run the same command again") from error


def read_codes(work: Folder, rows: RowRange) -> Iterator[Codes]:
    with work.open(codes_name(rows)) as file:
        while piece := file.read(BYTES_OF_CODES):
            yield np.frombuffer(piece, np.uint8)
