"""All pairs of rows within the threshold: in each block, and between a block and those who visit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clip_retrieval.curate.embedded import Floats, Ids, exact_cosines, places_of, unit
from clip_retrieval.curate.placed import Placed
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress

TILE_ROWS, TILE_COLUMNS = 1024, 4096  # 16 MB of products
BATCH_PRODUCTS = 4_000_000_000  # compared between two saved results: some tens of seconds
FIRST_KEPT = 64  # pairs of a row that stay where all together are too many: those with the rows that come first


class Task(NamedTuple):
    """Some columns of a block, to be compared with the rows before them and with visitors."""

    block: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Compare:
    """What makes two rows a pair."""

    threshold: float
    rank: Ids  # [rows]: its place in the order in which rows are kept
    boundary: int | None  # pairs lie on both sides of it; None: anywhere
    most_pairs: int  # in memory


@dataclass(eq=False)
class Pairs:
    """Pairs of rows, the smaller first, and the rows that have more than are listed."""

    ends: NDArray[np.int64]  # [pairs, 2]
    cut: set[int] = field(default_factory=set)

    def join(self, others: Sequence[Pairs]) -> Pairs:
        ends = np.concatenate([self.ends, *(other.ends for other in others)])
        return Pairs(ends, self.cut.union(*(other.cut for other in others)))

    def distinct(self) -> Pairs:
        return Pairs(np.unique(self.ends, axis=0) if len(self.ends) else self.ends, self.cut)

    def bounded(self, compare: Compare) -> Pairs:
        """Return at most `most_pairs` or so: of each row those with the rows that come first."""
        if len(self.ends) <= compare.most_pairs:
            return self
        return shorten(self.distinct(), compare)


def no_pairs() -> Pairs:
    return Pairs(np.empty((0, 2), np.int64))


def shorten(pairs: Pairs, compare: Compare) -> Pairs:
    """Return the first pairs of each row, and note the rows that lose some."""
    both = np.concatenate([pairs.ends, pairs.ends[:, ::-1]])
    numbers = np.concatenate([np.arange(len(pairs.ends))] * 2)
    order = np.lexsort((compare.rank[both[:, 1]], both[:, 0]))
    rows = both[order, 0]
    begins = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    places = np.arange(len(rows)) - np.repeat(begins, np.diff([*begins, len(rows)]))
    stays = np.zeros(len(pairs.ends), np.bool_)
    stays[numbers[order[places < FIRST_KEPT]]] = True
    lost = pairs.ends[~stays]
    return Pairs(pairs.ends[stays], pairs.cut | set(np.unique(lost).tolist()))


def find_pairs(placed: Placed, compare: Compare, work: Workspace) -> Pairs:
    """Return all pairs that the blocks tell; goes on where an earlier run stopped."""
    found = no_pairs()
    batches = list(in_batches(placed))
    with (
        show_progress("comparing", len(batches)) as advance,
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(count_cores()) as threads,
    ):
        for number, tasks in enumerate(batches):
            name = f"pairs_{number}"
            if not work.has(name):
                made = no_pairs().join([*threads.map(partial(run, placed, compare), tasks)]).distinct()
                work.keep(f"cut_{number}", partial(np.array, sorted(made.cut), np.int64))
                work.keep(name, partial(np.asarray, made.ends))
            ends, cut = np.load(work.path / f"{name}.npy"), np.load(work.path / f"cut_{number}.npy")
            found = found.join([Pairs(ends, set(cut.tolist()))]).bounded(compare)
            advance(1)
    return found.distinct()


def in_batches(placed: Placed) -> Iterator[list[Task]]:
    tasks: list[Task] = []
    work = 0
    for block in range(placed.block_count):
        first, stop = int(placed.starts[block]), int(placed.starts[block + 1])
        visiting = sum(int(starts[block + 1] - starts[block]) for _, starts in placed.visitors)
        for start in range(first, stop, TILE_COLUMNS):
            end = min(start + TILE_COLUMNS, stop)
            tasks.append(Task(block, start, end))
            work += (end - start) * (end - first + visiting)
            if work >= BATCH_PRODUCTS:
                yield tasks
                tasks, work = [], 0
    if tasks:
        yield tasks


def run(placed: Placed, compare: Compare, task: Task) -> Pairs:
    """Return the pairs of some columns of a block."""
    columns = unit(placed.load(slice(task.start, task.stop)))
    found = no_pairs()
    first = int(placed.starts[task.block])
    for start in range(first, task.stop, TILE_ROWS):
        rows = np.arange(start, min(start + TILE_ROWS, task.stop))
        found = found.join([compare_tile(placed, compare, rows, Columns(task, columns))]).bounded(compare)
    visitors = placed.visitors_of(task.block)
    for start in range(0, len(visitors), TILE_ROWS):
        rows = visitors[start : start + TILE_ROWS]
        tile = compare_tile(placed, compare, rows, Columns(task, columns, are_visited=True))
        found = found.join([tile]).bounded(compare)
    return found


class Columns(NamedTuple):
    """The columns of a task, loaded."""

    task: Task
    rows: Floats  # [columns, d], unit length
    are_visited: bool = False  # by rows of other blocks; else each pair of the block counts once


def compare_tile(placed: Placed, compare: Compare, rows: Ids, columns: Columns) -> Pairs:
    """Return the pairs of some rows with the task's columns; those near the threshold are computed in float64."""
    loaded = placed.load(rows)
    products = unit(loaded) @ columns.rows.T
    tolerance = rounding(columns.rows.shape[1])
    left, right = places_of(products >= np.float32(compare.threshold - tolerance))
    others = right + columns.task.start
    kept = np.ones(len(left), np.bool_) if columns.are_visited else rows[left] < others
    if compare.boundary is not None:
        kept &= (placed.ids[rows[left]] < compare.boundary) != (placed.ids[others] < compare.boundary)
    left, right, others = left[kept], right[kept], others[kept]
    unsure = np.flatnonzero(products[left, right] < compare.threshold + tolerance)
    is_pair = np.ones(len(left), np.bool_)
    is_pair[unsure] = exact_cosines(loaded[left[unsure]], placed.load(others[unsure])) >= compare.threshold
    ends = np.stack([placed.ids[rows[left[is_pair]]], placed.ids[others[is_pair]]], axis=1)
    return Pairs(np.sort(ends, axis=1))


def rounding(dim: int) -> float:
    """Return how far a product of unit rows in fp32 may be from the true one: the worst case, whatever the order."""
    return 2 * (dim + 4) * 2.0**-24
