"""Principal components of rows that come block by block; memory holds d * d numbers, one block and the result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clip_retrieval.map.rows import Rows
from clip_retrieval.progress import Advance


def reduce_rows(
    rows: Rows, ids: NDArray[np.int64], dim: int, advance: Advance
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the first principal components [n, dim] of the rows, and which rows have an embedding [n].

    One thread multiplies, so the sums do not depend on the number of cores.
    """
    is_there = np.zeros(len(ids), np.bool_)
    total = np.zeros(rows.dim)
    products = np.zeros((rows.dim, rows.dim))
    with threadpool_limits(1, "blas"):
        for start, block in rows.blocks(ids):
            is_there[start : start + len(block)] = block.any(axis=1)
            total += block.sum(axis=0, dtype=np.float64)
            products += block.T @ block
            advance(len(block))
        count = max(1, int(is_there.sum()))
        mean = total / count
        axes = find_axes(products / count - np.outer(mean, mean), dim)
        points = np.empty((len(ids), axes.shape[1]), np.float32)
        for start, block in rows.blocks(ids):
            points[start : start + len(block)] = (block - mean.astype(np.float32)) @ axes
            advance(len(block))
    return points, is_there


def find_axes(covariance: NDArray[np.float64], dim: int) -> NDArray[np.float32]:
    """Return the axes [d, dim] of the largest variance, in this order; the largest number of each is positive."""
    _, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :dim]
    largest = np.abs(axes).argmax(axis=0)
    signs = np.sign(axes[largest, np.arange(axes.shape[1])])
    signed: NDArray[np.float32] = (axes * signs).astype(np.float32)
    return signed
