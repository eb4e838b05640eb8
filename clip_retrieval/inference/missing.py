"""Which partitions are still to be made: missing ones, and those with failures whose reason may have passed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.inference.output.failures import FAILURE_SCHEMA
from clip_retrieval.json_files import parse_json
from clip_retrieval.layout import FAILURES_FOLDER, FEW, EmbeddingsFolder, Partition

# Reasons that a later run may not meet: a missing tar, a store that did not answer, a plug-in, `git lfs pull`.
PASSING_REASONS = (
    "shard:missing", "shard:unreadable", "image:unreadable", "image:needs_plugin", "text:unreadable",
    "metadata:unreadable", "shard:git_lfs_pointer", "image:git_lfs_pointer", "text:git_lfs_pointer",
    "metadata:git_lfs_pointer",
)  # fmt: skip


def needs_work(folder: EmbeddingsFolder, partition: Partition, run: str = "") -> bool:
    """Say whether to make a partition: it is missing, or failed before this run for a reason that may have passed."""
    if not folder.is_done(partition):
        return True
    if partition.start == partition.stop:
        return False  # more partitions were asked for than there are samples
    stats = folder.read_json(folder.stats_name(partition))
    return not (run and stats.get("run") == run) and is_worth_a_try(stats)


def is_worth_a_try(stats: Mapping[str, Any]) -> bool:
    return not stats["sample_count"] or any(reason in stats["reasons"] for reason in PASSING_REASONS)


def ids_to_make(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> Sequence[int]:
    """Return the ids of the partitions that need work: of many, by a listing, and the stats of those with failures."""
    if len(partitions) <= FEW:
        return [partition.id for partition in partitions if needs_work(folder, partition)]
    done = folder.done_among(partitions)
    if not done:
        return array("q", (partition.id for partition in partitions))
    again = {partition.id for partition in failed_before(folder, partitions, done)}
    return array("q", (part.id for part in partitions if part.name not in done or part.id in again))


def failed_before(folder: EmbeddingsFolder, partitions: Sequence[Partition], done: set[str]) -> Iterator[Partition]:
    """Yield the finished partitions that are worth another try."""
    sizes, empty = folder.sizes(FAILURES_FOLDER, ".parquet"), size_of_no_failures()
    suspects = [
        partition
        for partition in partitions
        if partition.start < partition.stop
        and partition.name in done
        and sizes.get(folder.failures_name(partition).rpartition("/")[2], 0) != empty
    ]
    names = [folder.stats_name(partition) for partition in suspects]
    for partition, name, data in zip(suspects, names, folder.read_all(names), strict=True):
        if is_worth_a_try(parse_json(data, dict[str, Any], folder.path(name))):
            yield partition


@cache
def size_of_no_failures() -> int:
    """Return the bytes of a file of no failures, as this version of pyarrow writes it."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, FAILURE_SCHEMA, compression="snappy") as writer:
        writer.write_table(FAILURE_SCHEMA.empty_table())
    return int(sink.getvalue().size)
