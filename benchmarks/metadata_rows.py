"""Metadata beside an index: writing metadata.arrow, fetching rows by random id, and a search for very many hits.

    python benchmarks/metadata_rows.py --work FOLDER [--rows 1000000] [--index FOLDER]

Twenty parquet files of captions of 4 to 40 words, addresses, paths, keys, sizes and a json column; some files lack a
column. Each line is of a process of its own; "first" is with the Arrow file dropped from the page cache. With --index,
an index folder of as many rows is asked for 100,000 hits, and their rows are fetched: medians of 5.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from index_builds import watch

FILES, HITS = 20, 100_000
WORDS = "the a of and with in on red dog cat house tree water blue old small photo man woman street car green".split()


def write_parquet(folder: Path, rows: int) -> int:
    """Write the files that are not there; return the bytes of all."""
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    ends = np.linspace(0, rows, FILES + 1).astype(int)
    for number in range(FILES):
        path = folder / "metadata" / f"metadata_{number:02d}.parquet"
        if path.exists():
            continue
        ids = np.arange(ends[number], ends[number + 1])
        rng = np.random.default_rng(number)
        words = rng.choice(WORDS, (len(ids), 40))
        counts = rng.integers(4, 41, len(ids))
        columns: dict[str, object] = {
            "image_path": [f"{i // 10000:05d}.tar/{i:09d}" for i in ids],
            "caption": [" ".join(row[:count]) for row, count in zip(words, counts, strict=True)],
            "url": [f"https://example.org/pictures/{i * 7919 % rows:09d}/{i:x}.jpg" for i in ids],
            "key": [f"{i:09d}" for i in ids],
            "width": rng.integers(64, 4000, len(ids)),
            "height": rng.integers(64, 4000, len(ids)),
            "exif": [json.dumps({"Make": "x", "Model": str(i % 100)}) for i in ids],
        }
        if number % 5 == 4:
            del columns["exif"]
        pq.write_table(pa.table(columns), path.with_suffix(".part"), row_group_size=10_000)
        path.with_suffix(".part").rename(path)
    return sum(path.stat().st_size for path in (folder / "metadata").glob("*.parquet"))


def run_part(part: str, folder: Path, index: str) -> None:
    """Do one part in this process, and print its figures as json."""
    from clip_retrieval.layout import IndexFolder
    from clip_retrieval.metadata import METADATA_ARROW, open_metadata
    from clip_retrieval.metadata.write import write_metadata_arrow

    home, start = IndexFolder(str(folder)), time.perf_counter()
    if part == "write":
        written = write_metadata_arrow(home, home)
        print(json.dumps({"write": time.perf_counter() - start, "rows": written.rows, "bytes": written.size}))
        return
    forget(folder / METADATA_ARROW)
    start = time.perf_counter()
    metadata = open_metadata(home)
    figures = {"open": time.perf_counter() - start}
    if part == "fetch":
        ids = np.random.default_rng(1).permutation(metadata.row_count)
        for name in ("first", "again"):
            start, worked = time.perf_counter(), time.process_time()
            table = metadata.rows(ids)
            figures[name] = time.perf_counter() - start
            figures[f"{name}, CPU"] = time.process_time() - worked
        assert table["key"][0].as_py() == f"{ids[0]:09d}"
        for count in (10, 1000):
            start = time.perf_counter()
            metadata.rows(ids[:count])
            figures[f"{count} rows"] = time.perf_counter() - start
    else:
        figures |= search(index, metadata)
    print(json.dumps(figures))


def search(index: str, metadata) -> dict[str, float]:
    from clip_retrieval.index.search import open_index
    from clip_retrieval.layout import IndexFolder

    opened = open_index(IndexFolder(index), "image")
    query = np.random.default_rng(2).standard_normal(opened.dim).astype(np.float32)
    query /= np.linalg.norm(query)
    figures, times = {}, {"search": [], "rows": []}
    for _ in range(5):
        start = time.perf_counter()
        found = opened.search(query, HITS)
        middle = time.perf_counter()
        metadata.rows(found.ids)
        times["search"].append(middle - start)
        times["rows"].append(time.perf_counter() - middle)
        figures["hits"] = len(found.ids)
    return figures | {name: float(np.median(some)) for name, some in times.items()}


def forget(path: Path) -> None:
    """Ask the system to drop a file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--index", default="", help="index folder of as many rows, for the search of 100,000 hits")
    parser.add_argument("--part", choices=["write", "fetch", "search"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.work / f"metadata_{args.rows}"
    if args.part:
        run_part(args.part, folder, args.index)
        return
    size = write_parquet(folder, args.rows)
    print(f"{args.rows:,} rows, {FILES} parquet files, {size / 1e6:,.0f} MB\n")
    print("| | s | peak MB held | with mapped files |\n|---|---|---|---|")
    for part in ("write", "fetch", "search") if args.index else ("write", "fetch"):
        command = [sys.executable, __file__, "--work", str(args.work), "--rows", str(args.rows)]
        usage, code, said = watch([*command, "--index", args.index, "--part", part], args.work / f"{part}.log")
        if code:
            sys.exit(f"{part} failed: {said}")
        figures = json.loads(said)
        cells = ", ".join(f"{name} {value:,.4f}".removesuffix(".0000") for name, value in figures.items())
        mapped = max(usage.mapped_megabytes, usage.largest_megabytes)
        print(f"| {part} | {cells} | {usage.held_megabytes:,.0f} | {mapped:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
