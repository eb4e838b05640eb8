"""Plain faiss as an engine: exact where that fits the bound, else inverted lists of scalar-quantised vectors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.engines import Bounds
from clip_retrieval.index.vectors import Vectors

SLACK = 0.95  # share of the bound that vectors may take; the rest is for ids, centroids and headers
TRAINING_ROWS_PER_LIST = 64
SPEED_QUERIES = 64
# Bits for each dimension, best first.
QUANTISERS = ((16, "SQfp16"), (8, "SQ8"), (6, "SQ6"), (4, "SQ4"))


def build_with_faiss(vectors: Vectors, bounds: Bounds, path: Path) -> dict[str, Any]:
    """Choose the most exact key that fits, train it on rows spread over the input, and add every row."""
    if bounds.cores is not None:
        faiss.omp_set_num_threads(bounds.cores)
    key = choose_key(vectors.row_count, vectors.dim, bounds)
    index = faiss.index_factory(vectors.dim, key, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(training_rows(vectors, index.nlist * TRAINING_ROWS_PER_LIST))
        index.nprobe = min(32, index.nlist)
    for part in vectors.parts():
        index.add(part)
    faiss.write_index(index, str(path))
    return {
        "index_key": key,
        "index_param": f"nprobe={index.nprobe}" if hasattr(index, "nprobe") else "",
        "size in bytes": path.stat().st_size,
        "avg_search_speed_ms": round(measure_speed(index, next(vectors.parts())[:SPEED_QUERIES]), 3),
        "nb vectors": vectors.row_count,
        "vectors dimension": vectors.dim,
        "compression ratio": round(4 * vectors.row_count * vectors.dim / path.stat().st_size, 3),
    }


def choose_key(row_count: int, dim: int, bounds: Bounds) -> str:
    """Return a faiss index key; raises IndexBuildError where nothing fits."""
    room = bounds.max_index_bytes * SLACK
    if row_count * dim * 4 <= room:
        return "Flat"
    lists = int(2 ** round(np.log2(max(16, 4 * np.sqrt(row_count)))))
    fixed = lists * dim * 4 + row_count * 8
    for bits, name in QUANTISERS:
        if row_count * dim * bits / 8 + fixed <= room:
            return f"IVF{lists},{name}"
    least = (row_count * dim / 2 + fixed) / SLACK
    raise IndexBuildError(
        f"{row_count:,} x {dim} vectors do not fit into {bounds.max_index_bytes / 1e6:,.0f} MB with this engine; "
        f"--max_index_memory_usage {least / 1e6 + 1:,.0f}MB would do, or a Python up to 3.12 with autofaiss"
    )


def training_rows(vectors: Vectors, count: int) -> NDArray[np.float32]:
    """Return about `count` rows, evenly spread, so that sorted inputs do not bias the lists."""
    step = max(1, vectors.row_count // count)
    picked, start = [], 0
    for part in vectors.parts():
        picked.append(part[(-start) % step :: step])
        start += len(part)
    return np.concatenate(picked)


def measure_speed(index: Any, queries: NDArray[np.float32]) -> float:
    """Return the mean milliseconds of single queries for 20 neighbours."""
    start = time.perf_counter()
    for query in queries:
        index.search(query[None], 20)
    return 1000 * (time.perf_counter() - start) / len(queries)
