"""Rows in blocks by k-means on the sphere, and the other blocks that each row is compared with.

A row x of block A and a row y of block B are on different sides of the plane between the two centroids. With u the unit
normal of that plane, x·u >= 0 >= y·u, so x·u + |y·u| = (x - y)·u <= |x - y|, which is at most the chord of the
threshold. So x or y is within half a chord of the plane, and it is enough if such rows visit the other block: this
bound is sound. In many dimensions it saves nothing, since a chord is long compared with the width of the data in one
direction. But the component of a difference along u is about chord / sqrt(dimensions). A bound of a few times that
saves nearly all comparisons and loses nearly no pairs. Each run measures how many it loses.

The rows here are projected (`projection.py`): their distances are at most those of the original rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import SEED, Floats, Ids, places_of, rounding, unit
from clip_retrieval.curate.projection import Projected, Projection
from clip_retrieval.embeddings.half_precision import widen

ROWS_PER_CENTROID = 40  # sampled for training; more moves recall by less than a thousandth
ITERATIONS = 8  # of clusters that people look at
BLOCK_ITERATIONS = 5  # of blocks; three more cost more than better blocks save
DEVIATIONS = 4.0  # that the component of a pair along a plane's normal may have
FEW_ROWS = 16_384  # up to this many, all are compared with all: blocks would take longer
MOST_BLOCKS = 65_536


@dataclass(frozen=True, eq=False)
class Blocks:
    """Centroids, and how near to the plane between two of them a row has to be to visit the other block."""

    centroids: Floats  # [k, d], unit length
    margin: float

    @property
    def count(self) -> int:
        return len(self.centroids)

    @cached_property
    def gaps(self) -> Floats:
        """Return [k, k]: how much nearer a row may be to its own centroid than to another whose block it visits."""
        squares = 2 - 2 * (self.centroids @ self.centroids.T)
        found: Floats = np.float32(self.margin) * np.sqrt(np.maximum(squares, 0)) + np.float32(
            rounding(self.centroids.shape[1])
        )
        return found

    @cached_property
    def widest(self) -> Floats:
        """Return [k]: the largest gap of each block."""
        found: Floats = self.gaps.max(axis=1)
        return found

    def place(self, rows: Floats) -> tuple[Ids, Ids, Ids]:
        """Return the block of each unit row [n], then rows and the blocks that they visit, by block."""
        products = rows @ self.centroids.T
        own = products.argmax(axis=1)
        nearest = products[np.arange(len(rows)), own]
        # The widest gap leaves few products; of these, the ones within their own gap are kept. That is one pass over
        # all products, not four.
        visitors, blocks = places_of(products >= (nearest - self.widest[own])[:, None])
        theirs = own[visitors]
        limits = nearest[visitors] - self.gaps[theirs, blocks]
        stays = (blocks != theirs) & (products[visitors, blocks] >= limits)
        visitors, blocks = visitors[stays], blocks[stays]
        order = np.argsort(blocks, kind="stable")
        return own.astype(np.int64), visitors[order], blocks[order]


def count_blocks(rows: int) -> int:
    """Return the number of blocks with which placing the rows takes as long as comparing them."""
    return 1 if rows <= FEW_ROWS else min(MOST_BLOCKS, math.ceil(2 * math.sqrt(rows)))


def half_chord(threshold: float) -> float:
    """Return half the distance of two unit rows with this cosine: the sound bound."""
    return math.sqrt(max(0.0, (1 - threshold) / 2))


def margin_of(projection: Projection, threshold: float, *, is_exact: bool) -> float:
    """Return how near to a plane a row has to be to visit the other side, to find all or nearly all pairs."""
    sound = half_chord(threshold - projection.loss)
    return sound if is_exact else min(sound, DEVIATIONS * sound / math.sqrt(projection.dimensions))


def find_blocks(projected: Projected, count: int, margin: float) -> Blocks:
    """Return blocks of these rows, trained on a sample that depends only on the rows."""
    if count == 1:
        return Blocks(np.zeros((1, projected.shape[1]), np.float32), 0.0)
    random = np.random.default_rng(SEED)
    wanted = min(len(projected), count * ROWS_PER_CENTROID)
    sample = widen(projected[np.sort(random.choice(len(projected), wanted, replace=False))])
    return Blocks(train(sample, min(count, len(sample)), steps=BLOCK_ITERATIONS), margin)


def train(sample: Floats, count: int, *, tries: int = 1, steps: int = ITERATIONS) -> Floats:
    """Return centroids [count, d] of unit rows, of unit length; the best of some tries."""
    clustering = faiss.Clustering(sample.shape[1], count)
    clustering.niter, clustering.nredo, clustering.seed, clustering.spherical = steps, tries, SEED, True
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, len(sample)
    clustering.train(sample, faiss.IndexFlatIP(sample.shape[1]))
    return unit(faiss.vector_to_array(clustering.centroids).reshape(count, -1).astype(np.float32))


def visit_share(blocks: Blocks, sample: Floats) -> float:
    """Return the share of the other blocks that a row visits on average."""
    if blocks.count == 1:
        return 0.0
    _, visitors, _ = blocks.place(sample)
    return len(visitors) / (len(sample) * (blocks.count - 1))


def as_offsets(numbers: NDArray[np.int64], count: int) -> Ids:
    """Return where each of `count` numbers begins in a sorted array of them, and the end of the array."""
    return np.searchsorted(numbers, np.arange(count + 1)).astype(np.int64)
