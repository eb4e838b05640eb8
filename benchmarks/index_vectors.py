"""Vectors to measure indices on: CLIP-like ones, or those of an embeddings folder, with queries and their exact truth.

A made vector is the offset of its modality, plus a cluster's center, plus noise; centers and noise share a spectrum
that falls as i^-0.8, cluster sizes follow Zipf's law. The offsets give rows a mean cosine of about 0.5 to each other
and of 0.1 to text-like queries, as CLIP models have on photographs; text-like queries are three times as noisy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

MODALITIES = ("image", "text")
CLUSTERS, SPREAD, DECAY, GAP = 1000, 0.7, 0.8, 1.2
NOISE = {"image": 1.0, "text": 3.0}
ROWS_AT_ONCE = 16_384
DEPTH = 100  # neighbors that a truth holds


@dataclass(frozen=True)
class Case:
    """What is indexed, and what is asked: queries [q, d] and the ids of their true neighbors [q, depth]."""

    folder: Path  # img_emb in it holds the rows and nothing else
    queries: dict[str, Rows]
    truth: dict[str, NDArray[np.int64]]
    row_count: int
    dim: int


class Space:
    """The geometry that rows and queries share."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 0])
        scale = np.arange(1, dim + 1) ** -DECAY
        basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        self.dim, self.seed = dim, seed
        self.mix = ((scale / np.linalg.norm(scale))[:, None] * basis.T).astype(np.float32)
        self.centers = rng.standard_normal((CLUSTERS, dim), dtype=np.float32) @ self.mix
        self.shares = np.cumsum(1 / np.arange(1, CLUSTERS + 1)) / np.sum(1 / np.arange(1, CLUSTERS + 1))
        common, apart = 0.8 * basis[:, -1], 0.6 * basis[:, -2]
        self.offsets = {"image": GAP * (common + apart), "text": GAP * (common - apart)}

    def draw(self, stream: Sequence[int], count: int, modality: str = "image") -> Rows:
        """Return unit vectors [count, d]: the same ones for the same stream of random numbers."""
        rng = np.random.default_rng([self.seed, *stream])
        clusters = np.searchsorted(self.shares, rng.random(count)).clip(max=CLUSTERS - 1)
        noise = rng.standard_normal((count, self.dim), dtype=np.float32) @ self.mix
        rows = self.offsets[modality].astype(np.float32) + self.centers[clusters] + NOISE[modality] * SPREAD * noise
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_vectors(folder: Path, rows: int, dim: int, rows_per_file: int) -> None:
    """Write float16 rows into img_emb; what is there already is kept, so that a stopped run goes on."""
    space = Space(dim)
    (folder / "img_emb").mkdir(parents=True, exist_ok=True)
    keep_to(folder / "about.json", {"rows": rows, "dim": dim, "rows_per_file": rows_per_file})
    starts = range(0, rows, rows_per_file)
    for number, start in enumerate(starts):
        path = folder / "img_emb" / f"img_emb_{number:0{len(str(len(starts)))}d}.npy"
        if path.exists():
            continue
        count = min(rows_per_file, rows - start)
        whole = np.lib.format.open_memmap(path.with_suffix(".part"), "w+", np.float16, (count, dim))
        for first in range(0, count, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, count - first)
            whole[first : first + size] = space.draw((1, number, first), size)
        whole.flush()
        path.with_suffix(".part").rename(path)
    if not (folder / "queries_image.npy").exists():
        for stream, modality in enumerate(MODALITIES, start=2):
            np.save(folder / f"queries_{modality}.npy", space.draw((stream,), 1000, modality))


def open_case(folder: Path, staging: Path, query_count: int) -> Case:
    """Return the case of an embeddings folder; its own queries and truth, else some that are made, kept in `staging`.

    Without queries of its own, rows evenly spread over its last file are held out of the index and asked instead,
    and the rows of text_emb beside them.
    """
    source = [path for path in sorted((folder / "img_emb").glob("*.npy")) if is_part(path)]
    if not source:
        raise SystemExit(f"{folder}/img_emb holds no npy files")
    (staging / "img_emb").mkdir(parents=True, exist_ok=True)
    queries = {name: rows for name in MODALITIES if (rows := find_array(folder, f"queries_{name}")) is not None}
    keep_to(staging / "about.json", {"source": str(folder.resolve()), "held out": 0 if queries else query_count})
    if not queries:
        queries = hold_out(folder, staging, source, query_count)
    for path in source:
        link = staging / "img_emb" / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    queries = {name: np.ascontiguousarray(rows[:query_count], dtype=np.float32) for name, rows in queries.items()}
    files = sorted((staging / "img_emb").glob("*.npy"))
    truth = {name: find_truth(folder, staging, name, rows, files) for name, rows in queries.items()}
    headers = [np.load(path, mmap_mode="r") for path in files]
    return Case(staging, queries, truth, sum(map(len, headers)), headers[0].shape[1])


def keep_to(path: Path, state: dict[str, object]) -> None:
    """Refuse a folder that was made for something else: its indices would be asked for rows that they do not hold."""
    if path.exists() and json.loads(path.read_text()) != state:
        raise SystemExit(f"{path} says {path.read_text()}, not {json.dumps(state)}; use another --work")
    path.write_text(json.dumps(state))


def is_part(path: Path) -> bool:
    return not path.name.startswith(("queries_", "gt_"))


def find_array(folder: Path, name: str) -> NDArray[np.generic] | None:
    paths = [path for path in (folder / f"{name}.npy", folder / "img_emb" / f"{name}.npy") if path.exists()]
    return np.load(paths[0]) if paths else None


def hold_out(folder: Path, staging: Path, source: Sequence[Path], count: int) -> dict[str, Rows]:
    """Copy the last file without some rows, and return these rows of both modalities; zero rows are no queries."""
    rows = np.load(source[-1])
    if len(rows) < 2 * count:
        raise SystemExit(f"{source[-1]} has {len(rows)} rows: too few to hold {count} out; ask fewer with --queries")
    picked = np.linspace(0, len(rows) - 1, count).astype(int)
    np.save(staging / "img_emb" / source[-1].name, np.delete(rows, picked, axis=0))
    queries = {"image": rows[picked]}
    texts = sorted((folder / "text_emb").glob("*.npy"))
    if texts:
        queries["text"] = np.load(texts[-1])[picked]
    return {name: held[np.abs(held).max(axis=1) > 0].astype(np.float32) for name, held in queries.items()}


def find_truth(folder: Path, staging: Path, name: str, queries: Rows, files: Sequence[Path]) -> NDArray[np.int64]:
    known = find_array(folder, f"gt_{name}")
    if known is not None:
        return known[: len(queries)].astype(np.int64)
    path, about = staging / f"gt_{name}.npy", staging / f"gt_{name}.json"
    state = {"queries": len(queries), "files": [file.name for file in files]}
    if not (path.exists() and about.exists() and json.loads(about.read_text()) == state):
        np.save(path, exact_neighbors(files, queries, DEPTH)[0])
        about.write_text(json.dumps(state))
    return np.load(path)


def blocks(files: Sequence[Path]) -> Iterator[tuple[int, Rows]]:
    """Yield the rows in order in fp32, some thousand at once, each block with the id of its first row."""
    start = 0
    for path in files:
        rows = np.load(path, mmap_mode="r")
        for first in range(0, len(rows), ROWS_AT_ONCE):
            yield start + first, np.asarray(rows[first : first + ROWS_AT_ONCE], dtype=np.float32)
        start += len(rows)


def exact_neighbors(files: Sequence[Path], queries: Rows, k: int) -> tuple[NDArray[np.int64], Rows]:
    """Return ids and inner products [q, k] of the nearest rows, best first: fp32 products with the rows as stored."""
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for first, rows in blocks(files):
        scores, ids = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, ids.astype(np.int64) + first)
    heap.finalize()
    return heap.I, heap.D
