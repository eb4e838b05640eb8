"""Rows projected to fewer numbers. A product of two projected rows is never below that of the original rows.

With orthonormal axes Q, x·y = Qx·Qy + x'·y', where x' and y' are what the axes leave out, and x'·y' <= |x'| |y'| by
Cauchy and Schwarz. So the projected row (Qx, |x'|) has length 1 as x has, a product of two projected rows is at least
x·y, and their distance at most |x - y|. Pairs whose projected rows are below the threshold are ruled out for a
fraction of the work, and the few others are compared whole. `Projection.loss` covers all rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import SEED, Floats, Ids, Pool, places_of, rounding, unit
from clip_retrieval.curate.threads import threads_alone
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.progress import show_progress

Projected = NDArray[np.float16]

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)  # numbers of a projected row; multiples of 8, which are read fast
SAMPLE = 8192  # rows that axes and width are found from
LOOKED_AT = 2048  # rows of the sample that are compared with all of it
MOST_PAIRS = 16_384  # of these rows and the nearest others
WHOLE_COST = 120_000  # of a pair that is compared whole, in multiplications of a projected product
SHRUNK = 1 - 4e-6  # norm of the axes: it stays below 1, where the bound ends, when 4,096 of them are rounded to fp32
HALF = 2.0**-10  # worst relative error of a product of numbers in fp16
CHUNK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Projection:
    """Axes, and in how many directions the rows really spread."""

    axes: Floats  # [width - 1, d]
    dimensions: float

    @property
    def width(self) -> int:
        return len(self.axes) + 1

    @cached_property
    def coordinate_error(self) -> float:
        """Return how far the coordinates of a row in fp32 may be from the true ones: the worst case."""
        return self.axes.shape[1] * math.sqrt(len(self.axes)) * 2.0**-24

    @cached_property
    def loss(self) -> float:
        """Return how far a product may be below x·y, or a squared distance above |x - y|², halved, by rounding."""
        return 2.05 * HALF + 4 * self.coordinate_error + 2 * rounding(self.axes.shape[1])

    def project(self, rows: Floats) -> Projected:
        """Return projected rows [n, width]; rows need not be of unit length."""
        lengths = np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), np.float32(1e-12))
        return self.join((rows @ self.axes.T) / lengths[:, None])

    def join(self, coordinates: Floats) -> Projected:
        """Return coordinates of unit rows, and what is left of their length of 1 (or a little more, by rounding)."""
        left = 1 + 2 * self.coordinate_error + rounding(self.axes.shape[1])
        rest = np.sqrt(np.maximum(0, left - np.einsum("nd,nd->n", coordinates, coordinates)))
        return np.column_stack([coordinates, rest]).astype(np.float16)


def find_projection(pool: Pool, ids: Ids, threshold: float, count: int, work: Workspace) -> Projection:
    """Return the projection that takes the least work in `count` blocks, by a sample of the rows with these ids."""

    def make() -> Floats:
        random = np.random.default_rng(SEED)
        sample = unit(pool.rows(np.sort(random.choice(ids, min(len(ids), SAMPLE), replace=False))))
        whole = find_axes(sample)
        work.save("dimensions", np.array([whole.dimensions]))
        return whole.axes[: choose_width(sample, whole, threshold, count) - 1]

    axes = np.asarray(work.keep("axes", make))
    return Projection(axes, float(work.load("dimensions")[0]))


def find_axes(sample: Floats) -> Projection:
    """Return the principal axes of unit rows, except the last."""
    dim = sample.shape[1]
    if len(sample) < 2:
        return Projection(np.eye(dim - 1, dim, dtype=np.float32), dim)
    spread = np.atleast_2d(np.cov(sample.astype(np.float64), rowvar=False))
    dimensions = max(1.0, float(np.trace(spread) ** 2 / max(float((spread**2).sum()), 1e-30)))
    axes = np.linalg.eigh(spread)[1].T[:0:-1]  # the largest first, without the last
    return Projection(np.ascontiguousarray(axes * SHRUNK, dtype=np.float32), dimensions)


def choose_width(sample: Floats, whole: Projection, threshold: float, count: int) -> int:
    """Return the width that takes the least work to compare a sample of unit rows in `count` blocks."""
    dim = sample.shape[1]
    if len(sample) < 2:
        return dim
    places = np.arange(0, len(sample), max(1, len(sample) // LOOKED_AT))
    products = sample[places] @ sample.T
    nearest = min(len(sample), max(1, round(2 * len(sample) / count)))
    is_near = products >= np.partition(products, -nearest, axis=1)[:, -nearest, None]
    left, right = places_of(is_near & (products < threshold))
    left, right = left[:MOST_PAIRS], right[:MOST_PAIRS]
    coordinates = sample @ whole.axes.T
    best, least = dim, math.inf
    for width in [*(width for width in WIDTHS if width < dim), dim]:
        made = Projection(whole.axes[: width - 1], whole.dimensions)
        projected = made.join(coordinates[:, : width - 1]).astype(np.float32)
        bounds = np.einsum("nd,nd->n", projected[places[left]], projected[right])
        is_open = bounds >= threshold - made.loss
        cost = width + min(WHOLE_COST * float(is_open.mean() if len(is_open) else 0), dim)
        if cost < least:
            best, least = width, cost
    return best


def project_rows(pool: Pool, ids: Ids, projection: Projection, work: Workspace) -> Projected:
    """Return the rows with these ids, projected [n, width] and mapped."""
    if not work.has("projected"):
        with (
            work.making("projected") as path,
            show_progress("projecting", len(ids)) as advance,
            threads_alone() as threads,
        ):
            shape = (len(ids), projection.width)
            made: NDArray[Any] = open_memmap(path, "w+", np.float16, shape)  # type: ignore[no-untyped-call]

            def project(start: int) -> None:
                made[start : start + CHUNK_ROWS] = projection.project(pool.rows(ids[start : start + CHUNK_ROWS]))
                advance(min(CHUNK_ROWS, len(ids) - start))

            list(threads.map(project, range(0, len(ids), CHUNK_ROWS)))
            del made  # writes what is not yet on disk
    return work.load("projected")
