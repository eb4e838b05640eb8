"""What opening an index costs, by faiss's ways of opening its file: memory of its own, mapped memory, CPU of a query.

Each way runs in a process of its own. Rows are random, lists are few: only bytes and work per row count here.

    python benchmarks/index_open.py FOLDER [--rows 200000] [--dim 128]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

KINDS = {
    "exact": "SQfp16",
    "graph": "HNSW16,SQfp16",
    "listed": "IVF256,SQfp16",
    "coded": "PCA64,IVF256,SQ8",
    "refined": "PCA64,IVF256,PQ32x4fs,Refine(SQfp16)",
}
WAYS = ("read", "MMAP_IFC", "MMAP", "MMAP, no prefetching")
QUERIES, NPROBE = 200, 16


def build(folder: Path, kind: str, rows: int, dim: int) -> Path:
    path = folder / f"{kind}.index"
    if not path.exists():
        count = rows // 4 if kind == "graph" else rows  # graphs take long to build
        values = np.random.default_rng(1).standard_normal((count, dim), dtype=np.float32)
        index = faiss.index_factory(dim, KINDS[kind], faiss.METRIC_INNER_PRODUCT)
        if kind == "graph":
            index.hnsw.efConstruction = 16
        index.train(values[:10_000])
        index.add(values)
        faiss.write_index(index, str(path))
    return path


def opened(path: Path, way: str) -> Any:
    if way == "read":
        return faiss.read_index(str(path))
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if way == "MMAP_IFC" else faiss.IO_FLAG_MMAP)
    lists = faiss.try_extract_index_ivf(index)
    if way.endswith("prefetching") and lists is not None:
        stored = faiss.downcast_InvertedLists(lists.invlists)
        if isinstance(stored, faiss.OnDiskInvertedLists):
            stored.prefetch_nthread = 0
    return index


def memory() -> dict[str, float]:
    """Return megabytes of this process that no file holds, and those that one does."""
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = {name: int(size) / 1000 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"own": sizes["Anonymous"], "mapped": sizes["Rss"] - sizes["Anonymous"]}


def measure(path: Path, way: str, *, cold: bool) -> dict[str, float]:
    faiss.omp_set_num_threads(1)
    if cold:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, start = memory(), time.perf_counter()
    index = opened(path, way)
    opening = time.perf_counter() - start
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = NPROBE
    queries = np.random.default_rng(2).standard_normal((QUERIES, index.d), dtype=np.float32)
    start = time.perf_counter()
    index.search(queries[:1], 10)
    first = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    for query in queries:
        index.search(query[None], 10)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = memory()
    return {
        **{f"{name} MB": round(after[name] - before[name]) for name in after},
        "opening ms": round(1000 * opening, 1),
        "first query ms": round(1000 * first, 2),
        "CPU ms a query": round(1000 * cpu / QUERIES, 3),
        "ms a query": round(1000 * wall / QUERIES, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "WAY"))
    parser.add_argument("--cold", action="store_true", help="drop the file from memory first")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one:
        print(json.dumps(measure(args.folder / f"{args.one[0]}.index", args.one[1], cold=args.cold)))
        return
    for kind in KINDS:
        path = build(args.folder, kind, args.rows, args.dim)
        for way in WAYS:
            command = [
                sys.executable,
                __file__,
                str(args.folder),
                "--one",
                kind,
                way,
                *(["--cold"] if args.cold else []),
            ]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = round(path.stat().st_size / 1e6)
            print(f"| {kind}, {size} MB | {way} |", " | ".join(str(value) for value in told.values()), "|", flush=True)


if __name__ == "__main__":
    main()
