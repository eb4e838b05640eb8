"""Two sets of rows compared: by their projections first, and whole where these leave it open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import Floats, Ids, exact_cosines, places_of, rounding, unit
from clip_retrieval.curate.placed import Rows

DENSE = 1 / 128  # share of open pairs above which a product of all whole rows takes less time than pair by pair
WAITING = 1 << 16  # open pairs that are decided together, since reading rows has a fixed cost
AT_ONCE = 8192

Ends = NDArray[np.int64]  # [n, 2]: two rows, the smaller first
NO_ENDS: Ends = np.empty((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Compare:
    """What makes two rows a pair."""

    threshold: float
    rank: Ids  # [rows]: its place in the order in which rows are kept
    boundary: int | None  # pairs lie on both sides of it; None: anywhere
    most_pairs: int  # in memory


@dataclass(frozen=True, eq=False)
class Side:
    """The rows on one side of a tile."""

    rows: Rows
    positions: Ids
    projected: Floats

    @staticmethod
    def of(rows: Rows, positions: Ids) -> Side:
        return Side(rows, positions, rows.load_projected(positions))

    def since(self, first: int) -> Side:
        return Side(self.rows, self.positions[first:], self.projected[first:]) if first > 0 else self

    @cached_property
    def whole(self) -> Floats:
        return self.rows.load(self.positions)

    @cached_property
    def units(self) -> Floats:
        return unit(self.whole)


class Tiles:
    """Compares tiles, and holds the pairs that are left open until there are enough to decide."""

    def __init__(self, rows: Rows, compare: Compare) -> None:
        self.rows, self.how = rows, compare
        self.waiting: list[tuple[Ids, Ids]] = []
        self.waiting_count = 0

    def compare(self, left: Side, right: Side, *, is_within: bool = False) -> Ends:
        """Return pairs that are decided by now; within one set, each pair counts once."""
        bounds = left.projected @ right.projected.T
        rows, columns = places_of(bounds >= np.float32(self.how.threshold - self.rows.loss))
        a, b = left.positions[rows], right.positions[columns]
        wanted = self.is_wanted(a, b, is_within=is_within)
        count = int(wanted.sum())
        if count > DENSE * bounds.size:
            return self.compare_whole(left, right, is_within=is_within)
        self.waiting.append((a[wanted], b[wanted]))
        self.waiting_count += count
        return self.decide() if self.waiting_count > WAITING else NO_ENDS

    def decide(self) -> Ends:
        """Return the pairs among those that were left open."""
        found = [NO_ENDS]
        waiting = [np.concatenate(side) for side in zip(*self.waiting, strict=True)] or NO_ENDS.T
        self.waiting, self.waiting_count = [], 0
        for start in range(0, len(waiting[0]), AT_ONCE):
            a, b = (side[start : start + AT_ONCE] for side in waiting)
            needed, places = np.unique(np.concatenate([a, b]), return_inverse=True)
            loaded = self.rows.load(needed)
            is_pair = are_near(loaded[places[: len(a)]], loaded[places[len(a) :]], self.how.threshold)
            found.append(self.ends(a[is_pair], b[is_pair]))
        return np.concatenate(found)

    def compare_whole(self, left: Side, right: Side, *, is_within: bool) -> Ends:
        """Return the pairs of a tile; those near the threshold are computed in float64."""
        products = left.units @ right.units.T
        tolerance = rounding(left.units.shape[1])
        rows, columns = places_of(products >= np.float32(self.how.threshold - tolerance))
        wanted = self.is_wanted(left.positions[rows], right.positions[columns], is_within=is_within)
        rows, columns = rows[wanted], columns[wanted]
        unsure = np.flatnonzero(products[rows, columns] < self.how.threshold + tolerance)
        is_pair = np.ones(len(rows), np.bool_)
        cosines = exact_cosines(left.whole[rows[unsure]], right.whole[columns[unsure]])
        is_pair[unsure] = cosines >= self.how.threshold
        return self.ends(left.positions[rows[is_pair]], right.positions[columns[is_pair]])

    def is_wanted(self, a: Ids, b: Ids, *, is_within: bool) -> NDArray[np.bool_]:
        wanted = a < b if is_within else a != b
        if self.how.boundary is not None:
            ids = self.rows.ids
            wanted &= (ids[a] < self.how.boundary) != (ids[b] < self.how.boundary)
        return wanted

    def ends(self, a: Ids, b: Ids) -> Ends:
        ids = self.rows.ids
        return np.sort(np.stack([ids[a], ids[b]], axis=1), axis=1)


def are_near(a: Floats, b: Floats, threshold: float) -> NDArray[np.bool_]:
    """Say for each pair of rows [n] whether its cosine is at least the threshold: by float64 where fp32 allows it."""
    lengths = np.sqrt(np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b))
    limit = np.float32(threshold - rounding(a.shape[1]))
    found: NDArray[np.bool_] = np.einsum("nd,nd->n", a, b) >= limit * lengths
    found[found] = exact_cosines(a[found], b[found]) >= threshold
    return found
