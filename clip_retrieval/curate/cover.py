"""Which rows are kept: a greedy cover in a fixed order. Every other row is itself a duplicate of a kept row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.blocks import as_offsets
from clip_retrieval.curate.embedded import Ids

More = Callable[[int, list[int]], int | None]  # a row, and the rows kept so far: the first of them that covers it


@dataclass(frozen=True, eq=False)
class Relation:
    """A kind of likeness: rows of one class are alike, and so are rows of two neighboring classes."""

    classes: Ids  # [rows]; -1: the row takes no part
    starts: Ids  # [classes + 1]: where the neighbors of each class begin
    neighbors: Ids

    @staticmethod
    def of(classes: Ids, pairs: NDArray[np.int64]) -> Relation:
        """Return the relation of classes and pairs of classes [n, 2]."""
        count = int(classes.max(initial=-1)) + 1
        both = np.concatenate([pairs, pairs[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        return Relation(classes, as_offsets(both[:, 0], count), np.ascontiguousarray(both[:, 1]))

    def is_shared(self) -> NDArray[np.bool_]:
        """Say for each row whether any other may be like it."""
        sizes = np.bincount(self.classes[self.classes >= 0], minlength=len(self.starts) - 1)
        is_shared = np.append((sizes > 1) | (np.diff(self.starts) > 0), [False])
        found: NDArray[np.bool_] = is_shared[self.classes]
        return found


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which rows are kept. If some rows are kept in any case, only these cover others."""

    rows: Ids  # [n], the first to be kept first
    rank: Ids  # [n]: the place of each row in it
    fixed: int | None = None  # rows from here on are kept; None: any row may cover others

    @staticmethod
    def of(rows: Ids, fixed: int | None = None) -> Order:
        rank = np.empty(len(rows), np.int64)
        rank[rows] = np.arange(len(rows))
        return Order(rows, rank, fixed)


def cover(order: Order, relations: Sequence[Relation], more: More | None = None) -> Ids:
    """Return for each row [n] the kept row that covers it, the first in the order; a kept row covers itself.

    A class has at most one kept row that covers: the next one of that class is covered by it.
    """
    leaders = np.arange(len(order.rows))
    kept_of = [np.full(len(relation.starts) - 1, -1, np.int64) for relation in relations]
    shared = np.zeros(len(order.rows), np.bool_)
    for relation in relations:
        shared |= relation.is_shared()
    kept: list[int] = []
    rank = order.rank
    for row in order.rows[shared[order.rows]].tolist():
        is_fixed = order.fixed is not None and row >= order.fixed
        found = None if is_fixed else find_leader(row, relations, kept_of, rank)
        if found is None and more is not None and not is_fixed:
            found = more(row, kept)
        if found is not None:
            leaders[row] = found
        elif order.fixed is None or is_fixed:
            kept.append(row)
            for relation, held in zip(relations, kept_of, strict=True):
                number = relation.classes[row]
                if number >= 0 and held[number] < 0:
                    held[number] = row
    return leaders


def find_leader(row: int, relations: Sequence[Relation], kept_of: Sequence[NDArray[np.int64]], rank: Ids) -> int | None:
    """Return the first kept row that is like a row; None if there is none."""
    best: int | None = None
    for relation, held in zip(relations, kept_of, strict=True):
        number = relation.classes[row]
        if number < 0:
            continue
        found = held[relation.neighbors[relation.starts[number] : relation.starts[number + 1]]]
        for kept in [int(held[number]), *found[found >= 0].tolist()]:
            if kept >= 0 and (best is None or rank[kept] < rank[best]):
                best = kept
    return best
