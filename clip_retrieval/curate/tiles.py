"""Two sets of rows compared: first by their projections; pairs that stay open are compared whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import Floats, Ids, exact_cosines, places_of, rounding, unit
from clip_retrieval.curate.placed import Rows

DENSE = 1 / 256  # share of open pairs above which a product of all whole rows takes less time than pair by pair
WAITING = 1 << 16  # open pairs that are decided together, since reading rows has a fixed cost
AT_ONCE = 8192

Ends = NDArray[np.int64]  # [n, 2]: two rows, the smaller first
NO_ENDS: Ends = np.empty((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Compare:
    """What makes two rows a pair."""

    threshold: float
    rank: Ids  # [rows]: its place in the order in which rows are kept
    boundary: int | None  # a pair has one row on each side of it; None: anywhere
    most_pairs: int  # in memory


@dataclass(frozen=True, eq=False)
class Side:
    """The rows on one side of a tile, read when they are needed."""

    rows: Rows
    positions: Ids

    @cached_property
    def projected(self) -> Floats:
        return self.rows.load_projected(self.positions)

    @cached_property
    def whole(self) -> Floats:
        return self.rows.load_again(self.positions)

    @cached_property
    def units(self) -> Floats:
        return unit(self.whole)


class Tile(NamedTuple):
    """Rows to compare with others."""

    left: Side
    right: Side
    first: int = 0  # others before it are left out
    is_within: bool = False  # both are of one set, of which each pair counts once


class Tiles:
    """Compares tiles, and holds the pairs that are left open until there are enough to decide."""

    def __init__(self, rows: Rows, compare: Compare) -> None:
        self.rows, self.how = rows, compare
        self.waiting: list[tuple[Ids, Ids]] = []
        self.waiting_count = 0

    def compare(self, tiles: Iterable[Tile]) -> Iterator[Ends]:
        """Yield the pairs decided so far; once a tile is compared whole, all later tiles are."""
        is_dense = False
        for tile in tiles:
            found = None if is_dense else self.rule_out(tile)
            is_dense = found is None
            yield self.compare_whole(tile) if found is None else found

    def rule_out(self, tile: Tile) -> Ends | None:
        """Hold the pairs that projected rows leave open; return what is decided so far, None if too many are open."""
        bounds = tile.left.projected @ tile.right.projected[tile.first :].T
        rows, columns = places_of(bounds >= np.float32(self.how.threshold - self.rows.loss))
        a, b = tile.left.positions[rows], tile.right.positions[columns + tile.first]
        wanted = self.is_wanted(a, b, is_within=tile.is_within)
        count = int(wanted.sum())
        if count > DENSE * bounds.size:
            return None
        self.waiting.append((a[wanted], b[wanted]))
        self.waiting_count += count
        return self.decide() if self.waiting_count > WAITING else NO_ENDS

    def decide(self) -> Ends:
        """Return the pairs among the open candidates."""
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

    def compare_whole(self, tile: Tile) -> Ends:
        """Return the pairs of a tile; similarities near the threshold are computed in float64."""
        products = tile.left.units @ tile.right.units[tile.first :].T
        tolerance = rounding(tile.left.units.shape[1])
        rows, columns = places_of(products >= np.float32(self.how.threshold - tolerance))
        a, b = tile.left.positions[rows], tile.right.positions[columns + tile.first]
        wanted = self.is_wanted(a, b, is_within=tile.is_within)
        rows, columns, a, b = rows[wanted], columns[wanted], a[wanted], b[wanted]
        unsure = np.flatnonzero(products[rows, columns] < self.how.threshold + tolerance)
        is_pair = np.ones(len(rows), np.bool_)
        cosines = exact_cosines(tile.left.whole[rows[unsure]], tile.right.whole[columns[unsure] + tile.first])
        is_pair[unsure] = cosines >= self.how.threshold
        return self.ends(a[is_pair], b[is_pair])

    def is_wanted(self, a: Ids, b: Ids, *, is_within: bool) -> NDArray[np.bool_]:
        wanted = a < b if is_within else a != b
        if self.how.boundary is not None:
            ids = self.rows.ids
            wanted &= (ids[a] < self.how.boundary) != (ids[b] < self.how.boundary)
        return wanted

    def ends(self, a: Ids, b: Ids) -> Ends:
        a, b = self.rows.ids[a], self.rows.ids[b]
        return np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)  # a tenth of the time of np.sort


def are_near(a: Floats, b: Floats, threshold: float) -> NDArray[np.bool_]:
    """Say for each pair of rows [n] whether its cosine is at least the threshold: fp32 rules out, float64 decides."""
    lengths = np.sqrt(np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b))
    limit = np.float32(threshold - rounding(a.shape[1]))
    found: NDArray[np.bool_] = np.einsum("nd,nd->n", a, b) >= limit * lengths
    found[found] = exact_cosines(a[found], b[found]) >= threshold
    return found


def distinct_ends(ends: Ends) -> Ends:
    """Return pairs in order, each once; one number for both rows sorts far faster than np.unique of rows."""
    width = int(ends.max(initial=0)) + 1
    return np.stack(np.divmod(np.unique(ends[:, 0] * width + ends[:, 1]), width), axis=1)
