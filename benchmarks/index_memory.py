"""Build an index under a memory bound, through the command, and look at what came out.

    python benchmarks/index_memory.py [--rows 200000] [--dim 512] [--bound 50MB] [--embeddings FOLDER]

Without --embeddings, seeded CLIP-like vectors are made: clusters around a common offset, float16, unit length.
Recall is that of 1,000 queries against exact search over all rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write_vectors(folder: Path, rows: int, dim: int) -> None:
    """Write rows in ten files, clusters of uneven size around one offset."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, dim)).astype(np.float32)
    offset = rng.standard_normal(dim).astype(np.float32)
    (folder / "img_emb").mkdir(parents=True)
    for i, count in enumerate([rows // 10] * 9 + [rows - rows // 10 * 9]):
        picked = centres[(rng.beta(1, 2, count) * len(centres)).astype(int)]
        vectors = offset + 0.7 * picked + 0.7 * rng.standard_normal((count, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", vectors.astype(np.float16))


def recall_at_10(index_path: Path, folder: Path) -> tuple[float, float]:
    """Return recall@10 and milliseconds for each of 1,000 queries near the rows, one at a time."""
    import faiss

    rows = np.concatenate([np.load(path).astype(np.float32) for path in sorted((folder / "img_emb").glob("*.npy"))])
    rng = np.random.default_rng(1)
    queries = rows[rng.choice(len(rows), 1000, replace=False)]
    queries += 0.02 * rng.standard_normal(queries.shape).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = faiss.IndexFlatIP(rows.shape[1])
    exact.add(rows)
    truth = exact.search(queries, 10)[1]
    index = faiss.read_index(str(index_path))
    start = time.perf_counter()
    found = np.concatenate([index.search(query[None], 10)[1] for query in queries])
    seconds = time.perf_counter() - start
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--bound", default="50MB")
    parser.add_argument("--available", default="4G")
    parser.add_argument("--embeddings", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.embeddings or Path(scratch) / "embeddings"
        if args.embeddings is None:
            write_vectors(folder, args.rows, args.dim)
        command = [sys.executable, "-m", "clip_retrieval", "index", str(folder), f"{scratch}/index", args.bound]
        start = time.perf_counter()
        done = subprocess.run([*command, args.available, "--json"], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        info = json.loads(done.stdout)["indices"]["image"]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        recall, milliseconds = recall_at_10(Path(scratch) / "index" / "image.index", folder)
        print(f"{info['nb vectors']:,} x {info['vectors dimension']} under {args.bound}: {info['index_key']}")
        print(f"  {seconds:.0f} s, peak {peak:.0f} MiB, file {info['size in bytes'] / 1e6:.1f} MB")
        print(f"  recall@10 {recall:.3f} at {milliseconds:.2f} ms/query")


if __name__ == "__main__":
    main()
