"""Projected rows by block, and the rows that visit each block; made in one pass over the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from clip_retrieval.curate.blocks import Blocks, as_offsets
from clip_retrieval.curate.embedded import Floats, Ids, Pool
from clip_retrieval.curate.projection import Projected
from clip_retrieval.curate.threads import threads_alone
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.progress import show_progress

CHUNK_BYTES = 4 << 20  # products of a chunk of rows with all centroids, for each thread: they stay in the CPU's cache
MOST_ROWS = 16_384  # of a chunk
PART_ROWS = 1 << 18  # between two saved results


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that are compared. A position is a place among them."""

    pool: Pool
    ids: Ids  # [n]: the row of each position, ascending
    projected: Projected  # [n, width], mapped
    loss: float  # how far a product of projected rows may be below that of the rows

    def load(self, positions: Ids) -> Floats:
        """Return the original rows, in fp32."""
        return self.pool.rows(self.ids[positions])

    def load_again(self, positions: Ids) -> Floats:
        return self.pool.rows_again(self.ids[positions])

    def mapped_again(self) -> Rows:
        """Return the same rows in a new mapping: pages that `load_again` reads count as memory while it lives."""
        return replace(self, pool=Pool(self.pool.members))

    def load_projected(self, positions: Ids | slice) -> Floats:
        return widen(self.projected[positions])


@dataclass(frozen=True, eq=False)
class Placed:
    """Positions by block."""

    rows: Rows
    order: Ids  # [n]: positions, block after block
    starts: Ids  # [blocks + 1]: where each block begins in this order
    visitors: list[tuple[Ids, Ids]]  # for each part of the rows: positions by block, and where each block's begin

    @property
    def block_count(self) -> int:
        return len(self.starts) - 1

    def visitors_of(self, block: int) -> Ids:
        found = [np.asarray(rows[starts[block] : starts[block + 1]]) for rows, starts in self.visitors]
        return np.concatenate([np.empty(0, np.int64), *found])


def place_rows(rows: Rows, blocks: Blocks, work: Workspace) -> Placed:
    """Sort rows by block; goes on where an earlier run stopped."""
    row_count, size = len(rows.ids), chunk_size(blocks.count)
    parts = range(0, row_count, PART_ROWS)
    with (
        show_progress("placing", row_count) as advance,
        threads_alone() as threads,
    ):

        def place(some: slice) -> tuple[Ids, Ids, Ids]:
            own, visitors, visited = blocks.place(rows.load_projected(some))
            advance(len(own))
            return own, visitors + some.start, visited

        for number, first in enumerate(parts):
            stop = min(first + PART_ROWS, row_count)
            if work.has(f"own_{number}"):  # the last of three
                advance(stop - first)
                continue
            chunks = (slice(start, min(start + size, stop)) for start in range(first, stop, size))
            own, visitors, visited = (
                np.concatenate(arrays) for arrays in zip(*threads.map(place, chunks), strict=True)
            )
            order = np.argsort(visited, kind="stable")
            work.save(f"blocks_{number}", as_offsets(visited[order], blocks.count))
            work.save(f"visits_{number}", visitors[order])
            work.save(f"own_{number}", own)
    numbers = range(len(parts))
    owners = np.concatenate([np.empty(0, np.int64), *(work.load(f"own_{number}") for number in numbers)])
    order = np.argsort(owners, kind="stable")
    visits = [(work.load(f"visits_{number}"), work.load(f"blocks_{number}")) for number in numbers]
    return Placed(rows, order, as_offsets(owners[order], blocks.count), visits)


def chunk_size(block_count: int) -> int:
    return max(256, min(MOST_ROWS, CHUNK_BYTES // (4 * block_count)))
