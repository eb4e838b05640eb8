"""All rows sorted by block in one file, and who visits which block; made in passes over the embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clip_retrieval.curate.blocks import Blocks, as_offsets
from clip_retrieval.curate.embedded import Floats, Ids, Pool, unit
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress

CHUNK_BYTES = 16 << 20  # products of a chunk of rows with all centroids, for each thread
MOST_ROWS = 16_384  # of a chunk
PART_ROWS = 1 << 18  # between two saved results


@dataclass(frozen=True, eq=False)
class Placed:
    """Rows in the order of their blocks. A position is a place in this order."""

    rows: NDArray[np.floating[Any]]  # [n, d] as they are stored, mapped
    ids: Ids  # [n]: the row of each position
    starts: Ids  # [blocks + 1]
    visitors: list[tuple[Ids, Ids]]  # for each part of the rows: positions by block, and where each block's begin

    @property
    def block_count(self) -> int:
        return len(self.starts) - 1

    def load(self, positions: Ids | slice) -> Floats:
        """Return rows as they are, in fp32."""
        return widen(self.rows[positions])

    def visitors_of(self, block: int) -> Ids:
        found = [np.asarray(rows[starts[block] : starts[block + 1]]) for rows, starts in self.visitors]
        return np.concatenate([np.empty(0, np.int64), *found])


def place_rows(pool: Pool, ids: Ids, blocks: Blocks, work: Workspace) -> Placed:
    """Sort the rows with these ids by block; goes on where an earlier run stopped."""
    parts = [ids[start : start + PART_ROWS] for start in range(0, len(ids), PART_ROWS)]
    with (
        show_progress("placing", len(ids)) as advance,
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(count_cores()) as threads,
    ):

        def place(some: Ids) -> tuple[Ids, Ids, Ids]:
            own, visitors, visited = blocks.place(unit(pool.rows(some)))
            advance(len(some))
            return own, some[visitors], visited

        for number, part in enumerate(parts):
            if work.has(f"own_{number}"):  # the last of three
                advance(len(part))
                continue
            size = chunk_size(blocks.count)
            placed = list(threads.map(place, (part[start : start + size] for start in range(0, len(part), size))))
            own, visitors, visited = (np.concatenate(arrays) for arrays in zip(*placed, strict=True))
            order = np.argsort(visited, kind="stable")
            work.save(f"blocks_{number}", as_offsets(visited[order], blocks.count))
            work.save(f"visits_{number}", visitors[order])
            work.save(f"own_{number}", own)
    owners = np.concatenate([np.load(work.path / f"own_{number}.npy") for number in range(len(parts))])
    order = np.argsort(owners, kind="stable")
    positions = np.empty(pool.row_count, np.int64)
    positions[ids[order]] = np.arange(len(ids))
    if not work.has("placed"):
        write_placed(pool, positions, ids, work)
    return Placed(
        np.load(work.path / "placed.npy", mmap_mode="r"),
        ids[order],
        as_offsets(owners[order], blocks.count),
        [*visits(work, len(parts), positions)],
    )


def chunk_size(block_count: int) -> int:
    return max(256, min(MOST_ROWS, CHUNK_BYTES // (4 * block_count)))


def write_placed(pool: Pool, positions: Ids, ids: Ids, work: Workspace) -> None:
    is_placed = np.zeros(pool.row_count, np.bool_)
    is_placed[ids] = True
    with work.making("placed") as path, show_progress("sorting", pool.row_count) as advance:
        made: NDArray[Any] = open_memmap(path, "w+", pool.dtype, (len(ids), pool.dim))  # type: ignore[no-untyped-call]
        for start, rows in pool.parts():
            here = np.flatnonzero(is_placed[start : start + len(rows)])
            targets = positions[start + here]
            order = np.argsort(targets)
            made[targets[order]] = rows[here[order]]
            advance(len(rows))
        del made  # writes what is not yet on disk


def visits(work: Workspace, part_count: int, positions: Ids) -> Iterator[tuple[Ids, Ids]]:
    """Yield each part's visitors as positions, and where each block's begin."""
    for number in range(part_count):
        where = work.keep(f"visiting_{number}", partial(as_positions, work, number, positions))
        yield where, np.load(work.path / f"blocks_{number}.npy")


def as_positions(work: Workspace, number: int, positions: Ids) -> Ids:
    found: Ids = positions[np.load(work.path / f"visits_{number}.npy")]
    return found
