"""Rows of metadata by random id: metadata.arrow compared with other ways, and the time to write it.

    python benchmarks/metadata.py --rows 1000000 [--folder FOLDER] [--batch_bytes 16 64 128 512]

Makes img2dataset-like metadata in ten parquet files (kept in --folder), writes metadata.arrow of it, and fetches
every row once, in random order: in batches of 1,000 and all at once, all columns and three of them. Every way has a
process of its own; cold: after the file's pages were dropped (Linux), so that the disk is read. Seconds are those of
the clock; those of the process (CPU) beside them count where the machine is busy with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.metadata import METADATA_ARROW, open_metadata, write
from clip_retrieval.metadata.parquet import ParquetFiles, ParquetMetadata
from clip_retrieval.storage import Folder

AT_ONCE = 1000
THREE = ("url", "caption", "image_path")
PANDAS_IDS, PARQUET_BATCHES = 20_000, 3  # slow methods get fewer ids; their time is scaled up


def make(folder: Path, rows: int) -> None:
    """Write ten parquet files of fifteen columns."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(5000)])
    (folder / "metadata").mkdir(parents=True)
    for part, ids in enumerate(np.array_split(np.arange(rows), 10)):
        text = words[rng.integers(0, len(words), (len(ids), 12))]
        sizes = {name: rng.integers(64, 4000, len(ids)) for name in ("width", "height")}
        columns: dict[str, Any] = {
            "image_path": [f"{i:09d}" for i in ids],
            "caption": [" ".join(row) for row in text],
            "shard": [f"/data/set/{i // 10_000:05d}.tar" for i in ids],
            "shard_offset": rng.integers(0, 2**29, len(ids)),
            "shard_size": rng.integers(2000, 90_000, len(ids)),
            "url": [f"https://{a}.example.org/{b}/{c}-{i}.jpg" for (a, b, c), i in zip(text[:, :3], ids, strict=True)],
            "key": [f"{i:09d}" for i in ids],
            "status": ["success"] * len(ids),
            "error_message": pa.nulls(len(ids), pa.string()),
            **sizes,
            **{f"original_{name}": values for name, values in sizes.items()},
            "exif": ["{}"] * len(ids),
            "sha256": [rng.bytes(32).hex() for _ in ids],
        }
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{part}.parquet")


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def timed(name: str, ask: Callable[[], object], scale: float = 1.0) -> dict[str, float]:
    """Return seconds by the clock and of the CPU, times `scale`."""
    start, cpu = time.perf_counter(), time.process_time()
    ask()
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
    return {name: seconds * scale, f"{name}_cpu": cpu * scale}


def fetch(metadata: Any, columns: tuple[str, ...] | None, *, batches: int | None = None) -> dict[str, float]:
    """Return the seconds for all ids: in batches, and at once."""
    ids = np.random.default_rng(1).permutation(metadata.row_count)
    parts = np.split(ids, range(AT_ONCE, len(ids), AT_ONCE))
    asked = parts[:batches]
    found = timed("batches", lambda: [metadata.rows(part, columns) for part in asked], len(parts) / len(asked))
    return found | timed("once", lambda: metadata.rows(ids, columns))


def run_arrow(folder: Path, columns: tuple[str, ...] | None) -> dict[str, float]:
    found: list[Any] = []
    opening = timed("opening", lambda: found.append(open_metadata(Folder(str(folder)))))
    return {**opening, **fetch(found[0], columns), "batch_count": len(found[0].batches)}


def run_parquet(folder: Path, columns: tuple[str, ...] | None) -> dict[str, float]:
    found: list[Any] = []
    opening = timed("opening", lambda: found.append(ParquetMetadata(ParquetFiles(Folder(str(folder))))))
    return {**opening, **fetch(found[0], columns, batches=PARQUET_BATCHES)}


def run_pandas(folder: Path, columns: tuple[str, ...] | None) -> dict[str, float]:
    """All of it as a DataFrame, and a slice of it for each id, as clip-retrieval 2.45 does."""
    import pandas as pd

    frames: list[pd.DataFrame] = []
    paths = sorted((folder / "metadata").glob("*.parquet"))
    opening = timed("opening", lambda: frames.append(pd.concat(pd.read_parquet(path) for path in paths)))
    names = list(columns or frames[0].columns)
    ids = np.random.default_rng(1).permutation(len(frames[0]))[:PANDAS_IDS]
    rows = timed(
        "batches",
        lambda: [frames[0][i : i + 1][names].to_dict(orient="records")[0] for i in ids],
        len(frames[0]) / len(ids),
    )
    return opening | rows


def run_write(folder: Path, batch_bytes: int) -> dict[str, float]:
    write.BATCH_BYTES = batch_bytes
    target = Folder(str(folder))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = timed("seconds", lambda: write.write_metadata_arrow(target, target))
    return {**seconds, "before": before, "size": (folder / METADATA_ARROW).stat().st_size / 1e6}


WAYS = {"arrow": run_arrow, "parquet": run_parquet, "pandas": run_pandas}


def in_process(*words: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *map(str, words)], check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def show(name: str, found: dict[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--batch_bytes", type=int, nargs="+", default=[16, 64, 128, 512], help="in MiB")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, folder, word = args.one
        found = (
            run_write(Path(folder), int(word))
            if way == "write"
            else WAYS[way](Path(folder), THREE if word == "three" else None)
        )
        print(json.dumps(found | {"peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "ix"
        if not (folder / "metadata").exists():
            make(folder, args.rows)
        for mebibytes in args.batch_bytes:
            show(f"write, {mebibytes} MiB", in_process("--one", "write", folder, mebibytes << 20))
            for columns in ("all", "three"):
                show(f"  arrow, {columns}", in_process("--one", "arrow", folder, columns))
        in_process("--one", "write", folder, write.BATCH_BYTES)
        drop_pages(folder)
        show("arrow, all, cold", in_process("--one", "arrow", folder, "all"))
        for way in ("parquet", "pandas"):
            for columns in ("all", "three"):
                show(f"{way}, {columns}", in_process("--one", way, folder, columns))


if __name__ == "__main__":
    main()
