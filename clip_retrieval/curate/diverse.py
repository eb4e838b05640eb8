"""Rows that differ: farthest points in blocks of similar rows, and of all blocks the points chosen farthest away."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.blocks import train
from clip_retrieval.curate.embedded import SEED, Embedded, Floats, Ids, unit
from clip_retrieval.curate.threads import threads_alone
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.progress import show_progress

BLOCK_ROWS = 1024  # on average
MOST_ROWS = 4096  # of a block: 64 MB of products
CHOSEN_PER_BLOCK = 4  # at least, on average: the first row of a block is chosen without looking at other blocks
ROWS_PER_CENTROID = 40
CHUNK_ROWS = 8192
BATCH = 64  # blocks between two saved results
FARTHEST = 2.0  # 1 - cosine of opposite rows


def choose_far(embedded: Embedded, ids: Ids, count: int, work: Workspace, name: str) -> Ids:
    """Return `count` of the rows with these ids, ascending; `ids` come best first, and the best of a block is chosen.

    Gonzalez' farthest-point traversal orders the rows of each block. Each row gets the distance at which it was
    chosen, and the rows with the largest distances of all blocks are taken. So wider blocks give more rows.
    Rows without an embedding are never chosen.
    """
    blocks = make_blocks(embedded, ids, count, work, name)
    found = [np.empty(0, np.float32)]
    with (
        show_progress("choosing", len(blocks)) as advance,
        threads_alone() as threads,
    ):
        for start in range(0, len(blocks), BATCH):
            some = blocks[start : start + BATCH]

            def order(some: list[Ids] = some) -> NDArray[np.float32]:
                rows = threads.map(lambda places: traverse(unit(read_rows(embedded.vectors, ids[places]))), some)
                return np.concatenate(list(rows))

            found.append(work.keep(f"far_{name}_{start}", order))
            advance(len(some))
    places = np.concatenate([np.empty(0, np.int64), *blocks])
    distances = np.concatenate(found)
    order_of_all = np.lexsort((places, -distances))
    order_of_all = order_of_all[distances[order_of_all] >= 0]
    return np.sort(ids[places[order_of_all[:count]]])


def make_blocks(embedded: Embedded, ids: Ids, count: int, work: Workspace, name: str) -> list[Ids]:
    """Return places among `ids` by block, ascending in each: blocks of similar rows, none above MOST_ROWS."""
    wanted = max(1, min(len(ids) // BLOCK_ROWS, count // CHOSEN_PER_BLOCK))
    own = np.asarray(work.keep(f"blocks_{name}", lambda: assign(embedded, ids, wanted)))
    order = np.argsort(own, kind="stable")
    edges = np.flatnonzero(np.diff(own[order], prepend=-1, append=own.max(initial=0) + 1))
    blocks = [order[start:stop] for start, stop in pairwise(edges)]
    return [part[at : at + MOST_ROWS] for part in blocks for at in range(0, len(part), MOST_ROWS)]


def assign(embedded: Embedded, ids: Ids, count: int) -> Ids:
    """Return the block of each row."""
    if count == 1:
        return np.zeros(len(ids), np.int64)
    random = np.random.default_rng(SEED)
    sample = np.sort(random.choice(ids, min(len(ids), count * ROWS_PER_CENTROID), replace=False))
    centroids = train(unit(read_rows(embedded.vectors, sample)), count)
    found = []
    with show_progress("placing", len(ids)) as advance:
        for start in range(0, len(ids), CHUNK_ROWS):
            rows = read_rows(embedded.vectors, ids[start : start + CHUNK_ROWS])
            found.append((rows @ centroids.T).argmax(axis=1))
            advance(len(rows))
    joined: Ids = np.concatenate(found).astype(np.int64)
    return joined


def traverse(rows: Floats) -> NDArray[np.float32]:
    """Return for each unit row [n] its distance to the rows chosen before it (-1 for zero rows); row 0 comes first."""
    distances = np.full(len(rows), -1, np.float32)
    filled = np.flatnonzero(rows.any(axis=1))
    if not len(filled):
        return distances
    apart = 1 - rows[filled] @ rows[filled].T
    nearest = np.full(len(filled), FARTHEST, np.float32)
    best = 0
    for _ in range(len(filled)):
        distances[filled[best]] = max(nearest[best], 0)
        np.minimum(nearest, apart[best], out=nearest)
        nearest[best] = -1
        best = int(nearest.argmax())
    return distances
