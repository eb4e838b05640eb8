"""The nearest rows of some queries among rows that stream by, and a fingerprint of the ids that were seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Nearest:
    """The best k rows of each query so far."""

    def __init__(self, queries: Floats, k: int) -> None:
        self.queries, self.k = queries, k
        self.ids = np.empty((len(queries), 0), np.int64)
        self.scores = np.empty((len(queries), 0), np.float32)

    def add(self, ids: Ids, vectors: Floats) -> None:
        """Take in rows [n, d]; equal scores keep the order of the ids."""
        if not len(self.queries) or not len(ids):
            return
        scores = np.concatenate([self.scores, self.queries @ vectors.T], axis=1)
        known = np.concatenate([self.ids, np.broadcast_to(ids, (len(self.queries), len(ids)))], axis=1)
        if scores.shape[1] > 2 * self.k:
            some = np.sort(np.argpartition(-scores, self.k - 1, axis=1)[:, : self.k], axis=1)
            scores, known = (np.take_along_axis(values, some, axis=1) for values in (scores, known))
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.scores, self.ids = (np.take_along_axis(values, order, axis=1) for values in (scores, known))


@dataclass
class IdSum:
    """The number of ids, and a sum and an exclusive or of their hashes: equal only for the same ids, in any order."""

    count: int = 0
    total: int = 0
    mixed: int = 0

    def add(self, ids: Ids) -> None:
        if not len(ids):
            return
        words = hash_ids(ids)
        self.count += len(ids)
        self.total = (self.total + int(words.sum(dtype=np.uint64))) % 2**64
        self.mixed ^= int(np.bitwise_xor.reduce(words))


def hash_ids(ids: Ids) -> NDArray[np.uint64]:
    """Return splitmix64 of each id."""
    words = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
