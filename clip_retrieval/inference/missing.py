"""Which partitions are still to be made: missing ones, and those with failures whose reason may have passed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_retrieval.inference.output.failures import FAILURE_SCHEMA
from clip_retrieval.inference.small_files import read_all
from clip_retrieval.json_files import parse_json
from clip_retrieval.layout import FAILURES_FOLDER, FEW, METADATA_FOLDER, EmbeddingsFolder, Partition
from clip_retrieval.metadata import make_table, open_writer

# Reasons that a later run may not meet: a missing tar, a store that did not answer, a plug-in, `git lfs pull`,
# a tar that was replaced while it was read.
PASSING_REASONS = (
    "shard:missing", "shard:unreadable", "image:unreadable", "image:needs_plugin", "text:unreadable",
    "metadata:unreadable", "shard:git_lfs_pointer", "image:git_lfs_pointer", "text:git_lfs_pointer",
    "metadata:git_lfs_pointer", "image:replaced", "text:replaced", "metadata:replaced",
)  # fmt: skip


def needs_work(folder: EmbeddingsFolder, partition: Partition, run: str = "") -> bool:
    """Say whether to make a partition: it is missing, or failed before this run for a reason that may have passed."""
    if not folder.is_done(partition):
        return True
    if partition.start == partition.stop:
        return False  # there are more partitions than samples
    stats = folder.read_json(folder.stats_name(partition))
    return not (run and stats.get("run") == run) and is_worth_a_try(stats)


def is_worth_a_try(stats: Mapping[str, Any]) -> bool:
    if "shard:replaced" in stats["reasons"]:
        return False  # rows of a table's other partitions are of another version
    return not stats["sample_count"] or any(reason in stats["reasons"] for reason in PASSING_REASONS)


def ids_to_make(folder: EmbeddingsFolder, partitions: Sequence[Partition], ids: Sequence[int]) -> Sequence[int]:
    """Return which of the ids need work; for many, by a listing and the stats of those with failures."""
    if len(ids) <= FEW:
        return [number for number in ids if needs_work(folder, partitions[number])]
    is_done = bytearray(len(partitions))
    for name in folder.names(METADATA_FOLDER, ".parquet"):
        if (number := id_in(name, len(partitions))) is not None:
            is_done[number] = True
    if not any(is_done):
        return ids
    for number in failed_before(folder, partitions, is_done):
        is_done[number] = False
    return array("q", (number for number in ids if not is_done[number]))


def id_in(name: str, count: int) -> int | None:
    """Return the partition's id in the name of one of its parquet files; None if it is not one of a run of `count`."""
    number = name.partition("_")[2].removesuffix(".parquet")
    return int(number) if number.isdecimal() and len(number) == len(str(count)) and int(number) < count else None


def failed_before(folder: EmbeddingsFolder, partitions: Sequence[Partition], is_done: bytearray) -> Iterator[int]:
    """Yield the ids of finished partitions that are worth another try.

    Partitions whose failures have the size of an empty file are left out unread. One that was made again always has a
    larger file (see FailureWriter): its stats may be older than its failures, if its worker was killed.
    """
    empty = size_of_no_failures()
    names = [Path(info["name"]).name for info in folder.entries(FAILURES_FOLDER) if info["size"] != empty]
    numbers = [number for name in names if (number := id_in(name, len(partitions))) is not None and is_done[number]]
    suspects = [part for part in map(partitions.__getitem__, numbers) if part.start < part.stop]
    stats = [folder.stats_name(partition) for partition in suspects]
    for partition, name, data in zip(suspects, stats, read_all(folder, stats), strict=True):
        if is_worth_a_try(parse_json(data, dict[str, Any], folder.path(name))):
            yield partition.id


@cache
def size_of_no_failures() -> int:
    """Return the bytes of a file of no failures, as this version of pyarrow writes it."""
    sink = pa.BufferOutputStream()
    with open_writer(sink, FAILURE_SCHEMA) as writer:
        writer.write_table(make_table([], FAILURE_SCHEMA))
    return int(sink.getvalue().size)
