"""All pairs of rows within the threshold: in each block, and between a block and its visitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from clip_retrieval.curate.placed import Placed
from clip_retrieval.curate.threads import threads_alone
from clip_retrieval.curate.tiles import NO_ENDS, Compare, Ends, Side, Tile, Tiles, distinct_ends
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress

TILE_ROWS, TILE_COLUMNS = 512, 4096  # at most 8 MB of products, mostly 1 or 2, which stay in the CPU's cache
BATCH_PRODUCTS = 4_000_000_000  # compared between two saved results: tens of seconds
GROUP_TASKS = 32
PENDING = 1 << 18  # pairs that are joined with earlier pairs at once
FIRST_KEPT = 64  # pairs of a row that stay if all together are too many: those with the first rows


class Task(NamedTuple):
    """Some columns of a block, to be compared with the rows before them and with visitors."""

    block: int
    start: int
    stop: int


@dataclass(eq=False)
class Pairs:
    """Pairs of rows, the smaller first, and the rows that have more than are listed."""

    ends: Ends
    cut: set[int] = field(default_factory=set)

    def join(self, others: Sequence[Pairs]) -> Pairs:
        ends = np.concatenate([self.ends, *(other.ends for other in others)])
        return Pairs(ends, self.cut.union(*(other.cut for other in others)))

    def distinct(self) -> Pairs:
        return Pairs(distinct_ends(self.ends), self.cut)

    def bounded(self, compare: Compare) -> Pairs:
        """Return at most `most_pairs` or so: of each row the pairs with the first rows."""
        if len(self.ends) <= compare.most_pairs:
            return self
        return shorten(self.distinct(), compare)


def no_pairs() -> Pairs:
    return Pairs(NO_ENDS)


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
    """Return all pairs that the blocks give; goes on where an earlier run stopped."""
    found = no_pairs()
    batches = list(in_batches(placed))
    with (
        show_progress("comparing", len(batches)) as advance,
        threads_alone() as threads,
    ):
        for number, tasks in enumerate(batches):
            name = f"pairs_{number}"
            if not work.has(name):
                made = no_pairs().join([*threads.map(partial(run, placed, compare), in_groups(tasks))]).distinct()
                work.keep(f"cut_{number}", partial(np.array, sorted(made.cut), np.int64))
                work.keep(name, partial(np.asarray, made.ends))
            ends, cut = np.asarray(work.load(name)), work.load(f"cut_{number}")
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


def in_groups(tasks: list[Task]) -> Iterator[list[Task]]:
    """Yield tasks for one thread each, enough for all threads; the open pairs of a group are decided together."""
    size = max(1, min(GROUP_TASKS, len(tasks) // (4 * count_cores())))
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def run(placed: Placed, compare: Compare, tasks: list[Task]) -> Pairs:
    """Return the pairs of some columns of some blocks."""
    placed = replace(placed, rows=placed.rows.mapped_again())
    tiles, found = Tiles(placed.rows, compare), no_pairs()
    pending, count = [NO_ENDS], 0
    for some in chain.from_iterable(tiles_of(placed, task) for task in tasks):
        for decided in tiles.compare(some):
            pending.append(decided)
            count += len(decided)
            if count > PENDING:
                found, pending, count = found.join([Pairs(np.concatenate(pending))]).bounded(compare), [NO_ENDS], 0
    return found.join([Pairs(np.concatenate([*pending, tiles.decide()]))]).bounded(compare)


def tiles_of(placed: Placed, task: Task) -> Iterator[Iterator[Tile]]:
    """Yield the tiles of a block's own rows, then those of its visitors."""
    columns = Side(placed.rows, placed.order[task.start : task.stop])
    firsts = range(int(placed.starts[task.block]), task.stop, TILE_ROWS)
    own = (Side(placed.rows, placed.order[start : min(start + TILE_ROWS, task.stop)]) for start in firsts)
    yield (
        Tile(side, columns, max(0, start - task.start), is_within=True) for start, side in zip(firsts, own, strict=True)
    )
    visitors = placed.visitors_of(task.block)
    parts = (visitors[start : start + TILE_ROWS] for start in range(0, len(visitors), TILE_ROWS))
    yield (Tile(Side(placed.rows, part), columns) for part in parts)
