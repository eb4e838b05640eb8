"""`dedup` compared with NeMo Curator's method, on planted duplicates at known distances.

    python benchmarks/dedup.py --rows 100000                 # both, and brute force for recall
    python benchmarks/dedup.py --rows 1000000 --only ours    # time and memory of `dedup` alone
    python benchmarks/dedup.py --rows 1000000 --check 5000   # both; recall of the pairs that 5,000 planted rows have

The method of NeMo Curator's semantic deduplication in numpy: k-means over all rows with cosine distance (Lloyd,
--iterations steps at most, where theirs defaults to 300), then all pairs within each cluster; a row goes if an earlier
one of its cluster is within the threshold. Times are CPU seconds of the process and its threads.
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

COSINES = (1.0, 0.99, 0.98, 0.97, 0.96, 0.955, 0.945, 0.9)


def plant(rows: int, dim: int, folder: Path, share: float = 0.05) -> np.ndarray:
    """Write rows around 2,000 centers, a `share` of which are copies of others at the cosines above; return those."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((2000, dim)).astype(np.float32)
    made = np.lib.format.open_memmap(folder / "all.npy", "w+", np.float16, (rows, dim))
    copies = int(rows * share)
    order = random.permutation(rows)
    for start in range(0, rows - copies, 65_536):
        count = min(65_536, rows - copies - start)
        block = 0.7 * centers[random.integers(0, 2000, count)] + random.standard_normal((count, dim)).astype(np.float32)
        made[order[start : start + count]] = block / np.linalg.norm(block, axis=1, keepdims=True)
    for start in range(0, copies, 65_536):
        count = min(65_536, copies - start)
        origin = made[order[start : start + count]].astype(np.float32)
        other = random.standard_normal((count, dim)).astype(np.float32)
        other -= (other * origin).sum(axis=1, keepdims=True) * origin
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        cosine = random.choice(np.array(COSINES, np.float32), count)[:, None]
        places = order[rows - copies + start : rows - copies + start + count]
        made[places] = cosine * origin + np.sqrt(1 - cosine**2) * other
    made.flush()
    (folder / "img_emb").mkdir()
    (folder / "all.npy").rename(folder / "img_emb/img_emb_0.npy")
    return order[rows - copies :]


def brute_force(rows: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    found = []
    for start in range(0, len(rows), 2048):
        products = rows[start : start + 2048] @ rows[start:].T
        left, right = np.nonzero(products >= threshold)
        later = right > left
        found.append(np.stack([left[later], right[later]], axis=1) + start)
    return set(map(tuple, np.concatenate(found).tolist()))


def pairs_of(some: np.ndarray, rows: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    """Return the pairs that some of the rows have with any."""
    found, queries = [], rows[some]
    for start in range(0, len(rows), 65_536):
        left, right = np.nonzero(queries @ rows[start : start + 65_536].T >= threshold)
        pairs = np.stack([some[left], right + start], axis=1)
        found.append(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1))
    return set(map(tuple, np.concatenate(found).tolist()))


def nemo(rows: np.ndarray, threshold: float, clusters: int, iterations: int) -> tuple[set[tuple[int, int]], np.ndarray]:
    """Return pairs within clusters, and which rows go."""
    random = np.random.default_rng(42)
    centroids = rows[random.choice(len(rows), clusters, replace=False)].copy()
    for step in range(iterations + 1):
        print(f"\rk-means, step {step}", end="", file=sys.stderr, flush=True)
        own = np.concatenate([(rows[at : at + 8192] @ centroids.T).argmax(axis=1) for at in range(0, len(rows), 8192)])
        if step == iterations:
            break
        order = np.argsort(own, kind="stable")
        starts = np.searchsorted(own[order], np.arange(clusters))
        filled = np.flatnonzero(np.diff([*starts, len(rows)]))
        sums = np.add.reduceat(rows[order], starts[filled], axis=0)
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
        moved = float(((centroids[filled] - sums) ** 2).sum())
        centroids[filled] = sums
        if moved < 1e-4:
            break
    pairs, goes = [], np.zeros(len(rows), bool)
    for cluster in range(clusters):
        members = np.flatnonzero(own == cluster)
        products = np.triu(rows[members] @ rows[members].T, 1)
        left, right = np.nonzero(products >= threshold)
        pairs.append(np.stack([members[left], members[right]], axis=1))
        goes[members[right]] = True
    return set(map(tuple, np.concatenate(pairs).tolist())), goes


def ours(folder: Path, out: Path, options: list[str]) -> dict[str, object]:
    """Run the command; return its result, its CPU seconds and its peak memory."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "clip_retrieval", "dedup", str(folder), str(out), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout) | {
        "cpu_s": round(cpu, 1),
        "wall_s": round(time.monotonic() - began, 1),
        "peak_mb": after.ru_maxrss // 1024,
    }


def compare(folder: Path, planted: np.ndarray, arguments: argparse.Namespace) -> None:
    rows = np.load(folder / "img_emb/img_emb_0.npy").astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    began = time.process_time()
    some = np.sort(planted[: arguments.check])
    true = pairs_of(some, rows, arguments.threshold) if len(some) else brute_force(rows, arguments.threshold)
    print(
        f"brute force of {len(some) or len(rows):,} rows: {len(true):,} pairs, {time.process_time() - began:.0f} CPU s",
        flush=True,
    )
    import pandas as pd

    table = pd.read_parquet(folder.with_name("out") / "groups.parquet")
    kept = table[table.kept].set_index("cluster")["id"]
    pairs = {
        tuple(sorted((row, kept[cluster])))
        for row, cluster, is_kept in zip(table.id, table.cluster, table.kept, strict=True)
        if not is_kept
    }
    gone = set(table[~table.kept].id)
    checked = set(some.tolist())
    known = pairs if not checked else {pair for pair in pairs if pair[0] in checked or pair[1] in checked}
    uncovered = sum(1 for left, right in true if left not in gone and right not in gone)
    print(
        f"dedup: of {len(known):,} decisions {len(known & true) / len(known):.4f} are right (brute force is in fp32, "
        f"which differs at the threshold); {1 - uncovered / len(true):.4f} of all true pairs have lost a row"
    )
    began = time.process_time()
    found, goes = nemo(rows, arguments.threshold, arguments.clusters, arguments.iterations)
    print(
        f"k-means ({arguments.clusters} clusters, {arguments.iterations} steps at most), pairs within: "
        f"recall {len(found & true) / len(true):.4f}, {goes.sum():,} rows go, {time.process_time() - began:.0f} CPU s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--only", choices=["ours"])
    parser.add_argument("--check", type=int, default=0, help="planted rows whose pairs are told by brute force; 0: all")
    parser.add_argument("options", nargs="*", help="of dedup, behind --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "embeddings"
        folder.mkdir()
        planted = plant(arguments.rows, arguments.dim, folder)
        options = ["--threshold", str(arguments.threshold), "--sheet_groups", "0", *arguments.options]
        result = ours(folder, folder.with_name("out"), options)
        wanted = ("cpu_s", "wall_s", "peak_mb", "blocks", "is_exact", "recall", "groups", "duplicates")
        print({name: result[name] for name in wanted}, flush=True)
        if not arguments.only:
            compare(folder, planted, arguments)


if __name__ == "__main__":
    main()
