"""Places on the map: by the first principal components, or by UMAP, which places similar points together."""

from __future__ import annotations

import importlib.util
import warnings

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError
from clip_retrieval.map.config import Layout

UMAP_DIM = 50  # principal components that UMAP sees
NEIGHBORS = 15
EXACT_ROWS = 20_000  # up to this many, neighbors are found by comparing all
LEAST_ROWS = 10  # for UMAP
SIDE = (1 << 16) - 1  # places are numbers of 16 bits


def choose_layout(wanted: Layout) -> Layout:
    """Return pca or umap. Raises ConfigError if umap is wanted and not installed."""
    is_there = importlib.util.find_spec("umap") is not None
    if wanted == "umap" and not is_there:
        raise ConfigError("umap is not installed: pip install 'clip-retrieval[map]', or give --layout pca")
    return ("umap" if is_there else "pca") if wanted == "auto" else wanted


def place_points(points: NDArray[np.float32], layout: Layout, seed: int) -> NDArray[np.uint16]:
    """Return places [n, 2], 0 to 65,535, for rows of principal components."""
    flat = np.zeros((len(points), 2), np.float32)
    flat[:, : points.shape[1]] = points[:, :2]
    if layout == "umap" and len(points) >= LEAST_ROWS:
        flat = run_umap(points, flat, seed)
    return to_square(flat)


def run_umap(points: NDArray[np.float32], start: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Lay out rows by their neighbors, starting from the first two components; with a seed UMAP uses one thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the optional TensorFlow, and about ignored options
        from umap import UMAP  # numba compiles for half a minute on first use

        neighbors, distances = find_neighbors(points, min(NEIGHBORS, len(points) - 1) + 1)
        spread = float(np.abs(start).max()) or 1.0
        model = UMAP(
            n_neighbors=neighbors.shape[1],
            min_dist=0.05,
            init=start * np.float32(10 / spread),
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(neighbors, distances),
        )
        placed: NDArray[np.float32] = model.fit_transform(points)
    return np.nan_to_num(placed)


def find_neighbors(points: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the nearest rows [n, count] of each row, itself first, and their distances."""
    rows = np.ascontiguousarray(points)
    index: faiss.Index = faiss.IndexFlatL2(rows.shape[1])
    if len(rows) > EXACT_ROWS:
        index = faiss.IndexIVFFlat(index, rows.shape[1], int(2 * len(rows) ** 0.5))
        index.nprobe = 16
        index.train(rows)
    index.add(rows)
    squares, ids = index.search(rows, count)
    own = np.arange(len(rows))
    ids = np.where(ids < 0, own[:, None], ids)
    is_own = ids == own[:, None]
    is_own[:, -1] |= ~is_own.any(axis=1)  # more duplicates than neighbors: the farthest makes room for the row itself
    first = is_own.argmax(axis=1)
    order = np.argsort(np.where(np.arange(count) == first[:, None], -1, np.arange(count)), axis=1)
    ids, squares = np.take_along_axis(ids, order, axis=1), np.take_along_axis(squares, order, axis=1)
    ids[:, 0], squares[:, 0] = own, 0
    return ids.astype(np.int32), np.sqrt(np.maximum(squares, 0, where=np.isfinite(squares), out=np.zeros_like(squares)))


def to_square(flat: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return places in a square, with one scale for width and height, and centered."""
    if not len(flat):
        return np.zeros((0, 2), np.uint16)
    low, high = flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)
    extent = float((high - low).max()) or 1.0
    places: NDArray[np.uint16] = np.round(((flat - (low + high) / 2) / extent + 0.5) * SIDE).astype(np.uint16)
    return places


def spread_out(places: NDArray[np.uint16], count: int, seed: int) -> NDArray[np.int64]:
    """Return up to `count` points, first those that are far apart: one for each cell of ever finer grids."""
    shuffled = np.random.default_rng(seed).permutation(len(places))
    chosen = np.zeros(0, np.int64)
    for level in range(17):
        if len(chosen) >= min(count, len(places)):
            break
        cells = (places[:, 0].astype(np.int64) >> (16 - level) << level) + (
            places[:, 1].astype(np.int64) >> (16 - level)
        )
        left = shuffled[~np.isin(cells[shuffled], cells[chosen])]
        firsts = np.sort(np.unique(cells[left], return_index=True)[1])
        chosen = np.concatenate([chosen, left[firsts]])
    rest = shuffled[~np.isin(shuffled, chosen)]  # points in the same place as others
    ordered: NDArray[np.int64] = np.concatenate([chosen, rest])
    return ordered[:count]
