"""Splits rows into tasks and groups parts into index files: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from clip_retrieval.layout import INDEX_SUFFIX

LEAST_ROWS = 100_000  # a task with fewer would mostly copy centroids
MOST_ROWS = 10_000_000
USUAL_TASKS = 256


@dataclass(frozen=True)
class RowRange:
    """Rows start..stop of an embeddings folder."""

    start: int
    stop: int

    @property
    def row_count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class MergedPart:
    """A file of a finished index, and its parts, in order."""

    name: str
    rows: RowRange
    parts: Sequence[RowRange]


def split_rows(row_count: int, least_count: int, rows_per_task: int | None = None) -> list[RowRange]:
    """Cut rows into about equal ranges, at least `least_count` of them if there are as many rows.

    The count does not depend on the cluster, so a run resumed with other executors has the same parts.
    """
    wanted = rows_per_task or min(max(row_count // USUAL_TASKS, LEAST_ROWS), MOST_ROWS)
    count = min(max(-(-row_count // wanted), least_count), row_count)
    return [RowRange(start, stop) for start, stop in pairwise(row_count * i // count for i in range(count + 1))]


def group_parts(parts: Sequence[RowRange], count: int) -> list[MergedPart]:
    """Put neighboring parts together into `count` files, or as many as there are parts."""
    count = min(count, len(parts))
    bounds = pairwise(len(parts) * i // count for i in range(count + 1))
    groups = [parts[first:last] for first, last in bounds]
    digits = max(2, len(str(count - 1)))  # sorting file names must sort rows
    return [
        MergedPart(f"{i:0{digits}d}{INDEX_SUFFIX}", RowRange(group[0].start, group[-1].stop), group)
        for i, group in enumerate(groups)
    ]


def part_name(rows: RowRange) -> str:
    return f"part_{rows.start:012d}_{rows.stop:012d}{INDEX_SUFFIX}"


def codes_name(rows: RowRange) -> str:
    """Return the name of the file with the codes of a part's store, which is written before the part."""
    return f"part_{rows.start:012d}_{rows.stop:012d}.codes"
