"""Assigns rows to lists through the few principal directions of the centroids, while rows are added.

Comparing rows with all centroids takes most of a build. Centroids are means of many rows, so they differ in far fewer
directions than rows do: the nearest few are found by these directions alone, and only they are compared in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

CANDIDATES = 4
LEAST_LISTS = 256  # lists below which nothing is gained
KEPT = 0.99  # share of the centroids' variance that the directions keep
STEP = 32  # dimensions, which suits the processor
TRIED, AGREED = 1024, 0.98  # centroids tried as rows, and the least share that must get the same list
WORTHWHILE = 0.5  # largest useful share of the dimensions; above it nothing is gained


@contextmanager
def quick_lists(index: Any) -> Iterator[None]:
    """Assign rows added within the block the quick way, if the index has suitable lists."""
    lists = faiss.try_extract_index_ivf(index)
    quick = None if lists is None else make_quick(faiss.downcast_index(lists.quantizer))
    if quick is None:
        yield
        return
    whole = lists.quantizer
    lists.quantizer = quick
    try:
        yield
    finally:
        lists.quantizer = whole


def make_quick(quantizer: Any) -> Any | None:
    """Return a faster quantizer that finds the same lists; None if there is none."""
    if not isinstance(quantizer, faiss.IndexFlat) or quantizer.metric_type != faiss.METRIC_INNER_PRODUCT:
        return None
    if quantizer.ntotal < LEAST_LISTS:
        return None
    centroids = quantizer.reconstruct_n(0, quantizer.ntotal)
    columns = find_directions(centroids - centroids.mean(axis=0))
    if columns.shape[1] > WORTHWHILE * quantizer.d:
        return None
    turn = faiss.LinearTransform(*columns.shape, False)  # noqa: FBT003 -- have_bias
    faiss.copy_array_to_vector(columns.T.ravel(), turn.A)
    turn.is_trained = True
    short = faiss.IndexFlatIP(columns.shape[1])
    short.add(turn.apply(centroids))
    quick = faiss.IndexRefine(faiss.IndexPreTransform(turn, short), quantizer)
    quick.k_factor = CANDIDATES
    return quick if finds_the_same(quick, quantizer, centroids[:TRIED]) else None


def finds_the_same(quick: Any, quantizer: Any, rows: NDArray[np.float32]) -> bool:
    """Say whether both find the same lists for some rows [n, d].

    They do not if many centroids are nearly equal, as for rows that are repeated many times: faiss makes such centroids
    if it finds no others. Searches would then probe other lists than the ones with the rows.
    """
    found, wanted = (one.search(rows, 1)[1] for one in (quick, quantizer))
    return bool((found == wanted).mean() >= AGREED)


def find_directions(differences: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return orthonormal columns [d, r] that hold nearly all of some differences [n, d]."""
    squares, columns = np.linalg.eigh((differences.T @ differences).astype(np.float64))
    held = np.cumsum(squares[::-1]) / squares.sum()
    count = -(-(1 + int(np.searchsorted(held, KEPT))) // STEP) * STEP
    return np.ascontiguousarray(columns[:, ::-1][:, :count], dtype=np.float32)
