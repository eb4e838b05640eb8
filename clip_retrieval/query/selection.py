"""Which hits are shown: one of each group of near-duplicates, or hits that differ from each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError

NEAR_DUPLICATE = 0.94  # cosine; the threshold of clip-retrieval 2
BLOCK = 1024  # rows compared at once: 4 MB of products

Rows = NDArray[np.float32]  # [n, d], unit length


def find_leaders(rows: Rows, threshold: float = NEAR_DUPLICATE) -> NDArray[np.int64]:
    """Return for each row [n] the row that represents it: the first kept row within the threshold, or itself.

    Rows come best first. A row joins a group only by its similarity to the kept row, never to another member, so no
    group is a chain: its members are within `threshold` of the kept row. Zero rows represent themselves.
    Time grows with n times the number of kept rows; memory with one block.
    """
    check_share("deduplicate", threshold)
    leaders = np.arange(len(rows))
    kept = np.empty(0, np.int64)
    for start in range(0, len(rows), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(rows)))
        joined = join_kept(rows, block, kept, threshold)
        near = rows[block] @ rows[block].T >= threshold
        for place, row in enumerate(block):
            if joined[place] < 0:
                earlier = np.flatnonzero(near[place, :place] & (leaders[block[:place]] == block[:place]))
                joined[place] = block[earlier[0]] if len(earlier) else row
            leaders[row] = joined[place]
        kept = np.concatenate([kept, block[leaders[block] == block]])
    return leaders


def join_kept(rows: Rows, block: NDArray[np.int64], kept: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Return for each row of a block the first of the kept rows within the threshold; -1 if there is none."""
    joined = np.full(len(block), -1, np.int64)
    for start in range(0, len(kept), BLOCK):
        some = kept[start : start + BLOCK]
        near = rows[block] @ rows[some].T >= threshold
        found = near.any(axis=1) & (joined < 0)
        joined[found] = some[near[found].argmax(axis=1)]
    return joined


def choose_diverse(rows: Rows, scores: NDArray[np.float32], k: int, diversity: float) -> NDArray[np.int64]:
    """Return the places of k hits in the order of their choice, by maximal marginal relevance.

    Each step takes the hit with the largest (1 - diversity) * score - diversity * similarity to the most similar hit
    that was taken before (Carbonell and Goldstein, SIGIR 1998). 0 gives the order of scores; after the first hit, 1
    looks only at differences. Time grows with k times n.
    """
    check_share("diverse", diversity)
    count = min(k, len(rows))
    relevance = (1 - diversity) * scores.astype(np.float32)
    nearest = np.full(len(rows), -np.inf, np.float32)
    left = np.ones(len(rows), np.bool_)
    chosen = np.empty(count, np.int64)
    for step in range(count):
        marginal = relevance - diversity * nearest if step else relevance
        chosen[step] = best = int(np.argmax(np.where(left, marginal, -np.inf)))
        left[best] = False
        np.maximum(nearest, rows @ rows[best], out=nearest)
    return chosen


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is a number between 0 and 1, not {value:g}")
