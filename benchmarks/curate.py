"""`label`, `select` and `report` over random rows: CPU seconds, rows per CPU second, peak memory.

python benchmarks/curate.py --rows 100000
python benchmarks/curate.py --rows 1000000 --classes 1000 --chosen 100000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def make_folder(folder: Path, rows: int, dim: int) -> None:
    """Write rows around 2,000 centers, in files of 100,000, their captions, and a column of numbers."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((2000, dim)).astype(np.float32)
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    starts = range(0, rows, 100_000)
    for number, start in enumerate(starts):
        count = min(100_000, rows - start)
        own = random.integers(0, 2000, count)
        for name in ("img_emb", "text_emb"):
            block = 0.7 * centers[own] + random.standard_normal((count, dim)).astype(np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            np.save(folder / name / f"{name}_{number:03d}.npy", block.astype(np.float16))
        table = pa.table(
            {
                "caption": [f"a photo of thing {kind} taken by nobody" for kind in own.tolist()],
                "width": random.integers(64, 4096, count),
                "height": random.integers(64, 4096, count),
            }
        )
        pq.write_table(table, folder / f"metadata/metadata_{number:03d}.parquet")
    about = {"clip_model": f"hash:{dim}?size=32", "fingerprint": f"hash-{dim}-0", "dimension": dim, "precision": "fp32"}
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": about}))


class Runner:
    """Runs commands, and tells what each took."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def run(self, title: str, *arguments: object) -> None:
        """Run in a process of its own: its peak memory is that of its children."""
        probe = (
            "import json, resource, subprocess, sys; "
            "done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
            "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
            "print(json.dumps([done.returncode, done.stderr[-300:], used.ru_utime + used.ru_stime, used.ru_maxrss]))"
        )
        command = [sys.executable, "-c", probe, sys.executable, "-m", "clip_retrieval", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        code, said, cpu, peak = json.loads(done.stdout)
        if code:
            sys.exit(f"{title}: {said}")
        print(f"{title}: {cpu:.1f} CPU s, {self.rows / cpu:,.0f} rows/CPU s, {peak // 1024:,} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--chosen", type=int, help="rows that select chooses; a tenth by default")
    arguments = parser.parse_args()
    chosen = arguments.chosen or arguments.rows // 10
    with tempfile.TemporaryDirectory() as name:
        folder, runner = Path(name) / "run", Runner(arguments.rows)
        make_folder(folder, arguments.rows, arguments.dim)
        (folder / "labels.txt").write_text("\n".join(f"thing {number}" for number in range(arguments.classes)))
        random = np.random.default_rng(1)
        shapes = [(1024, arguments.dim), (128, 1024), (64, 128), (16, 64), (1, 16)]
        layers = {f"layers.{number}.weight": random.standard_normal(shape) for number, shape in enumerate(shapes)}
        np.savez(folder / "head.npz", **{key: array.astype(np.float32) for key, array in layers.items()})
        runner.run(f"{arguments.classes:,} labels", "label", folder, "--labels_file", folder / "labels.txt")
        runner.run("similarity", "label", folder, "--name", "pairs", "--similarity")
        runner.run("a head of 5 layers", "label", folder, "--name", "heads", "--head", folder / "head.npz")
        runner.run("outliers and 100 clusters", "label", folder, "--name", "shape", "--outlier", "--clusters", 100)
        runner.run(f"{chosen:,} by --top", "select", folder, Path(name) / "top", "--top", "width", "--count", chosen)
        runner.run(f"{chosen:,} --diverse", "select", folder, Path(name) / "far", "--diverse", "--count", chosen)
        runner.run("report", "report", folder, Path(name) / "report.html")


if __name__ == "__main__":
    main()
