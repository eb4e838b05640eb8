"""Tasks of executors: build one part, or merge parts. Finished tasks are skipped.

Every file appears complete under its name, and only once it is on the disk. So a task may be tried anywhere, any number
of times, even at once, and no finished task has to be repeated after a loss of power.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np

from clip_retrieval.clusters.base import Shared
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.code_stores import (
    Codes,
    CodesInFile,
    code_bytes,
    encode,
    find_lists,
    find_store,
    holds_halves,
    write_codes,
    write_with_store,
)
from clip_retrieval.index.building.listed_files import ListedFile, is_listed, open_listed, write_listed
from clip_retrieval.index.building.on_disk import staged_on_disk
from clip_retrieval.index.building.parts import fill_lists, find_halves, merge_into, open_bytes, read_range
from clip_retrieval.index.building.ranges import MergedPart, RowRange, codes_name, part_name
from clip_retrieval.progress import Watch, unwatched
from clip_retrieval.search.cores import using_cores
from clip_retrieval.search.files import write_file
from clip_retrieval.search.tree import has_ids
from clip_retrieval.storage import Folder

SHARE_IT = "put --temporary_indices_folder on a file system that all of them and this machine share, or on a store"
BYTES_OF_CODES = 1 << 22  # bytes that are copied at a time


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Inputs shared by all tasks of one index; both folders must be visible under one name on every machine."""

    vectors: Vectors
    work: Folder
    merged_folder: str  # below `work`
    cores: int | None  # cores of each task; None: all
    watch: Watch = unwatched

    def merged_name(self, merged: MergedPart) -> str:
        return f"{self.merged_folder}/{merged.name}"


def write_whole(job: IndexJob, trained: Shared, path: Path, rows: RowRange) -> None:
    """Write an index in one piece; rows are read once for the lists and once for the store."""
    index = open_bytes(trained.value)
    lists, store = find_lists(index), find_store(index)
    share = 1.0 if store is None or lists is None else 0.5
    if lists is not None:
        fill_lists(index, job.watch(read_range(job.vectors, rows), share), rows)
    write_with_store(index, () if store is None else codes_of(job, store, rows, share), rows.row_count, path)


def add_part(job: IndexJob, trained: Shared, rows: RowRange) -> None:
    """Write the part that holds some rows; raises ClipRetrievalError if their files cannot be read.

    fp16 codes are not written here; merging copies them from the embeddings.
    """
    if job.work.exists(part_name(rows)):
        return
    if not job.vectors.folder.exists():
        raise IndexBuildError(
            f"an executor sees no folder {job.vectors.folder.url}; share it with all of them, or use a store"
        )
    with using_cores(job.cores):
        write_part(job, open_bytes(trained.value), rows)


def write_part(job: IndexJob, index: Any, rows: RowRange) -> None:
    lists, store = find_lists(index), find_store(index)
    own_codes = store is not None and halves_of(job, store, rows) is None
    share = 0.5 if own_codes and lists is not None else 1.0
    if own_codes:
        with staged_on_disk(job.work, codes_name(rows)) as staged, staged.open("wb") as file:
            write_codes(codes_of(job, store, rows, share), file)
    if lists is not None:
        fill_lists(index, job.watch(read_range(job.vectors, rows), share), rows)
    with staged_on_disk(job.work, part_name(rows)) as staged:
        write_file(index if lists is None else lists, staged)


def merge_group(job: IndexJob, trained: Shared, merged: MergedPart) -> None:
    """Merge neighboring parts into one file of the index.

    Lists are copied from file to file. Memory holds lists only for indices with a store: those of the whole, and those
    of one part.
    """
    if job.work.exists(job.merged_name(merged)):
        return
    with using_cores(job.cores):
        write_merged(job, open_bytes(trained.value), merged)


def write_merged(job: IndexJob, index: Any, merged: MergedPart) -> None:
    lists, store = find_lists(index), find_store(index)
    if is_listed(index):
        with staged_on_disk(job.work, job.merged_name(merged)) as staged, TemporaryDirectory() as scratch:
            read = partial(read_listed, Path(scratch))
            write_listed([read_part(job, None, rows, read) for rows in merged.parts], staged)
        return
    for rows in merged.parts:
        part = read_part(job, store, rows)
        if lists is not None:
            merge_into(lists, part, 0 if has_ids(index) else rows.start - merged.rows.start)
    codes = () if store is None else (codes for rows in merged.parts for codes in merged_codes(job, store, rows))
    with staged_on_disk(job.work, job.merged_name(merged)) as staged:
        write_with_store(index, codes, merged.rows.row_count, staged)


def codes_of(job: IndexJob, store: Any, rows: RowRange, share: float) -> Iterable[Codes]:
    """Return the codes of some rows, encoded on demand."""
    if (halves := halves_of(job, store, rows)) is not None:
        return job.watch(halves, share)
    return encode(store, job.watch(read_range(job.vectors, rows), share))


def merged_codes(job: IndexJob, store: Any, rows: RowRange) -> Iterable[Codes]:
    """Return the codes of a part's rows, from the embeddings or from the file next to the part."""
    return halves if (halves := halves_of(job, store, rows)) is not None else read_codes(job.work, rows)


def halves_of(job: IndexJob, store: Any, rows: RowRange) -> list[CodesInFile] | None:
    """Return where the embeddings hold the store's codes byte for byte; None if they do not."""
    return find_halves(job.vectors, rows) if holds_halves(store) else None


def read_whole(work: Folder, name: str) -> Any:
    return faiss.read_index(work.path(name)) if work.is_local else open_bytes(work.read_bytes(name))


def read_listed(scratch: Path, work: Folder, name: str) -> ListedFile:
    """Open a part of lists without its rows, or a copy of one that is on a store."""
    path = work.path(name)
    if not work.is_local:
        path = str(scratch / name)
        with work.answering():
            work.fs.get_file(work.path(name), path)
    if (listed := open_listed(path)) is None:
        raise RuntimeError(f"{name} is not a file of lists, or not complete")
    return listed


def read_part(job: IndexJob, store: Any | None, rows: RowRange, read: Callable[[Folder, str], Any] = read_whole) -> Any:
    """Return a part's lists, after checking that its codes are complete."""
    work, name = job.work, part_name(rows)
    if not work.exists(name):
        raise IndexBuildError(f"an executor does not see {work.path(name)}, which another one wrote; {SHARE_IT}")
    try:
        if store is not None and halves_of(job, store, rows) is None:
            check_codes(work, rows, code_bytes(store) * rows.row_count)
        return read(work, name)
    except RuntimeError as error:  # cut off, as after a loss of power
        work.remove(name)
        raise IndexBuildError(f"{work.path(name)} was damaged and is removed; run the same command again") from error


def check_codes(work: Folder, rows: RowRange, size: int) -> None:
    name = codes_name(rows)
    if work.sizes("", name) != {name: size}:
        raise RuntimeError(f"{name} is not of {size} bytes")


def read_codes(work: Folder, rows: RowRange) -> Iterator[Codes]:
    with work.open(codes_name(rows)) as file:
        while piece := file.read(BYTES_OF_CODES):
            yield np.frombuffer(piece, np.uint8)
