"""While rows are added, the list of each is found by the few directions in which the centroids of lists differ.

Comparing rows with all centroids takes most of a build. Centroids are means of many rows, so they differ in far fewer
directions than rows do: the nearest few are found by those alone, and only they are compared in full.
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
TRIED, AGREED = 1024, 0.98  # centroids, and the share of them for which the same list has to be found
WORTHWHILE = 0.5  # share of all dimensions; with more of them nothing is gained


@contextmanager
def quick_lists(index: Any) -> Iterator[None]:
    """Have the rows that are added in the block put into lists the quick way, where the index has such lists."""
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
    """Return what finds the lists that a quantizer does, but sooner; None where there is no such thing."""
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

    They do not where many centroids are nearly one, as those of rows that are many times the same: faiss makes such
    where it has no others. Searches would look into other lists than the rows are in.
    """
    found, wanted = (one.search(rows, 1)[1] for one in (quick, quantizer))
    return bool((found == wanted).mean() >= AGREED)


def find_directions(differences: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return orthonormal columns [d, r] that hold nearly all of some differences [n, d]."""
    squares, columns = np.linalg.eigh((differences.T @ differences).astype(np.float64))
    held = np.cumsum(squares[::-1]) / squares.sum()
    count = -(-(1 + int(np.searchsorted(held, KEPT))) // STEP) * STEP
    return np.ascontiguousarray(columns[:, ::-1][:, :count], dtype=np.float32)
