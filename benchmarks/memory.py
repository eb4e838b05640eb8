"""Peak memory of a run's processes, for runs of different length: it must not grow with the number of samples.

python benchmarks/memory.py [--rows 10000 100000 1000000] [--format webdataset|parquet|files|flat] [--device cpu]

The encoder has no weights, the pictures are tiny, and a few tars or tables are listed again and again: what is measured
is the pipeline. `files` has a file for each row, a thousand in a folder, `flat` all of them in one folder. Every
thousandth of these pictures is broken (without a caption its sample is left out), and `--changed 10` changes ten of
them afterwards and runs `--update`. PSS counts shared memory once, over all processes; RSS counts it in each. Held is
the PSS without mapped files, which depends on what other programs map. Both are looked at every 0.05 s and miss peaks
that are shorter, the more so in short runs. "Highest RSS" misses none: the kernel's own high-water mark (VmHWM) of each
process, added up. Rows and failures of each run are checked.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from make_data import write_shards
from PIL import Image

SHARD_ROWS = 1000
BROKEN_EVERY = 1000
LOOKS = ((60.0, 0.05), (float("inf"), 0.5))  # seconds of a run, and seconds between looks until then
KINDS = {"readers.process": "readers", "worker_process": "workers", "clip_retrieval inference": "run"}
FLAT = 1.05

Peaks = dict[str, float]  # kind of process -> MB


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--format", choices=["webdataset", "parquet", "files", "flat"], default="webdataset")
    parser.add_argument("--partition_rows", type=int, default=0, help="0: all rows in one partition")
    parser.add_argument("--changed", type=int, default=0, help="files that change before an update is measured")
    parser.add_argument("--work", type=Path, help="folder to work in, which is kept, with what is there already")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="hash:64?size=32")
    return parser.parse_args()


def make_input(folder: Path, args: argparse.Namespace, rows: int) -> str:
    """Return the input of a run of that many rows."""
    if args.format == "webdataset":
        shards = folder / "shards"
        if not shards.exists():
            write_shards(shards, 4 * SHARD_ROWS, SHARD_ROWS, 32)
        return repeat(sorted(map(str, shards.glob("*.tar"))), rows)
    if args.format == "parquet":
        return repeat([write_table(folder / f"{number}.parquet", number * SHARD_ROWS) for number in range(4)], rows)
    if (folder / "pictures").exists():
        return str(folder / "pictures")
    for number in range(rows):
        path = place_of(folder, args, number)
        if number % SHARD_ROWS == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return str(folder / "pictures")


def repeat(names: list[str], rows: int) -> str:
    return str([names[i % len(names)] for i in range(rows // SHARD_ROWS)])


def place_of(folder: Path, args: argparse.Namespace, number: int) -> Path:
    below = "" if args.format == "flat" else f"{number // SHARD_ROWS:05d}"
    return folder / "pictures" / below / f"{number:08d}.jpg"


def picture(number: int, seed: int = 0) -> bytes:
    """Return a small JPEG, another file for each number; every thousandth is cut off."""
    payload = plain_picture(seed + number % 251)
    if number % BROKEN_EVERY == BROKEN_EVERY - 1:
        return payload[:100]
    comment = f"{number:08d}".encode()
    return payload[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + payload[2:]


@cache
def plain_picture(seed: int) -> bytes:
    buffer, rng = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize((32, 32), 0).save(buffer, "JPEG")
    return buffer.getvalue()


def write_table(path: Path, first: int) -> str:
    numbers = range(first, first + SHARD_ROWS)
    columns = {"image": [picture(number) for number in numbers], "caption": [f"picture {number}" for number in numbers]}
    pq.write_table(pa.table(columns), path)
    return str(path)


def count_outcome(output: Path) -> tuple[int, int, int]:
    """Return rows of metadata, rows of embeddings that are not zero, and failures."""
    filled = 0
    for path in sorted((output / "img_emb").glob("*.npy")):
        rows = np.load(path, mmap_mode="r")
        for start in range(0, len(rows), 65_536):
            filled += int(np.any(rows[start : start + 65_536], axis=1).sum())
    tables = (
        sum(pq.read_metadata(path).num_rows for path in (output / name).glob("*.parquet"))
        for name in ("metadata", "failures")
    )
    rows_written, failures = tables
    return rows_written, filled, failures


def processes(group: int) -> list[tuple[int, str]]:
    """Return the processes of a group, each with what it is."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            line = (folder / "cmdline").read_text().replace("\0", " ")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        kind = next((kind for name, kind in KINDS.items() if name in line), None)
        if kind is not None and int(fields[2]) == group:
            found.append((int(folder.name), kind))
    return found


def measure(pid: int) -> tuple[float, float]:
    """Return PSS, and what of it is no mapped file, in MB; zeros for a process that is gone."""
    sizes = read_sizes(Path(f"/proc/{pid}/smaps_rollup"))
    pss = sizes.get("Pss", 0.0)
    return pss, pss - sizes.get("Pss_File", 0.0)


def read_sizes(path: Path) -> dict[str, float]:
    """Return the lines `Name: 12 kB` of a file of /proc, in MB; none for a process that is gone."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1:] == ["kB"]}


@dataclass
class Watched:
    """Peaks by kind of process: PSS, and held memory, with their sums under "all"; and the highest RSS by process.

    The sum of the peaks is steadier than the peak of the sums, which short runs may miss.
    """

    pss: Peaks
    held: Peaks
    highest: dict[tuple[str, int], float]  # kind and id of a process -> MB
    seconds: float = 0.0

    def highest_of(self, kind: str | None = None) -> float:
        """Return the highest RSS of the processes of a kind, or of all, added up."""
        return sum(size for (found, _), size in self.highest.items() if kind in (None, found))


def watch(process: subprocess.Popen[bytes]) -> Watched:
    start = time.perf_counter()
    found = Watched(defaultdict(float), defaultdict(float), {})
    while process.poll() is None:
        now: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for pid, kind in processes(process.pid):
            pss, held = measure(pid)
            now[kind] = [now[kind][0] + pss, now[kind][1] + held]
            mark = read_sizes(Path(f"/proc/{pid}/status")).get("VmHWM", 0.0)
            found.highest[kind, pid] = max(found.highest.get((kind, pid), 0.0), mark)
        for kind, (pss, held) in now.items():
            found.pss[kind] = max(found.pss[kind], pss)
            found.held[kind] = max(found.held[kind], held)
        found.seconds = time.perf_counter() - start
        time.sleep(next(wait for until, wait in LOOKS if found.seconds < until))
    for peaks in (found.pss, found.held):
        peaks["all"] = sum(peaks.values())
    return found


def run(source: str, output: Path, args: argparse.Namespace, rows: int, *more: str) -> Watched:
    partitions = max(1, rows // args.partition_rows) if args.partition_rows else 1
    command = [
        *(sys.executable, "-m", "clip_retrieval", "inference"),
        *("--input_dataset", source, "--output_folder", str(output)),
        *("--input_format", "files" if args.format == "flat" else args.format),
        *("--clip_model", args.model, "--device", args.device),
        *("--num_prepro_workers", str(args.readers), *more),
        *(() if more else ("--output_partition_count", str(partitions))),
    ]
    log = output.parent / "run.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        found = watch(process)
    if process.returncode:
        sys.exit(f"the run of {rows} rows ended with code {process.returncode}:\n{log.read_text()[-2000:]}")
    return found


def check(output: Path, args: argparse.Namespace, rows: int, changed: int = 0) -> str:
    """Return what the output holds; ends the program where a row or a failure is missing."""
    broken = 0 if args.format == "webdataset" else rows // BROKEN_EVERY
    wanted = (rows if args.format == "parquet" else rows - broken + changed, rows - broken, broken)
    written, filled, failures = found = count_outcome(output)
    if found != wanted:
        sys.exit(f"rows, filled rows and failures are {found}, and should be {wanted}")
    return f"{written:,} rows, {filled:,} filled, {failures:,} failures"


def main() -> None:
    args = parse_arguments()
    kinds = [kind for kind in ("run", "workers", "readers") if kind != "workers" or "," in args.device]
    print(f"peak MB, {args.format}, {args.device}, {args.readers} readers, model {args.model}\n")
    heads = ["rows", "s", *(f"{kind} (held)" for kind in (*kinds, "all")), "PSS of all"]
    heads += [f"{kind} (highest RSS)" for kind in (*kinds, "all")]
    print(f"| {' | '.join([*heads, 'growth of highest RSS', 'output'])} |")
    print("|--:" * (len(heads) + 2) + "|")
    first = 0.0
    for rows in args.rows:
        with ExitStack() as stack:
            scratch = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            scratch.mkdir(exist_ok=True)
            output = scratch / "output"
            source = make_input(scratch, args, rows)
            if not output.exists():
                found = run(source, output, args, rows)
                first = first or found.highest_of()
                report(f"{rows:,}", found, kinds, first, check(output, args, rows))
            if args.changed:
                for number in range(args.changed):
                    place_of(scratch, args, number).write_bytes(picture(number, seed=1000))
                found = run(source, output, args, rows, "--update")
                first = first or found.highest_of()
                report(
                    f"{rows:,}, {args.changed} changed", found, kinds, first, check(output, args, rows, args.changed)
                )
            if not args.work:
                shutil.rmtree(output)


def report(name: str, found: Watched, kinds: list[str], first: float, outcome: str) -> None:
    held = [f"{found.held[kind]:.0f}" for kind in (*kinds, "all")]
    highest = [f"{found.highest_of(kind):.0f}" for kind in (*kinds, None)]
    growth = found.highest_of() / first
    mark = "" if growth <= FLAT else " (not flat)"
    cells = [
        name,
        f"{found.seconds:.0f}",
        *held,
        f"{found.pss['all']:.0f}",
        *highest,
        f"{growth - 1:+.1%}{mark}",
        outcome,
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
