"""Peak memory of a run's processes, for runs of different length: it must not grow with the number of samples.

python benchmarks/memory.py [--rows 10000 100000 1000000] [--format webdataset|files] [--device cpu]

The encoder has no weights, the pictures are tiny, and a few tars are listed again and again: what is measured is the
pipeline. PSS counts shared memory once, over all processes; RSS counts it in each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from make_data import write_shards

SHARD_ROWS = 1000
SECONDS_BETWEEN_SAMPLES = 0.05
KINDS = {"readers.process": "readers", "worker_process": "workers", "clip_retrieval inference": "run"}
FLAT = 1.05

Peaks = dict[str, float]  # kind of process -> MB


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--format", choices=["webdataset", "files"], default="webdataset")
    parser.add_argument("--partition_rows", type=int, default=0, help="0: all rows in one partition")
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
        names = sorted(map(str, shards.glob("*.tar")))
        return str([names[i % len(names)] for i in range(rows // SHARD_ROWS)])
    pictures = folder / f"pictures{rows}"
    for number in range(rows):
        place = pictures / f"{number // SHARD_ROWS:05d}"
        first = place / f"{number - number % SHARD_ROWS:08d}.jpg"  # a file has not more than some 65,000 links
        if number % SHARD_ROWS == 0:
            place.mkdir(parents=True)
            write_one(first)
        else:
            os.link(first, place / f"{number:08d}.jpg")
    return str(pictures)


def write_one(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (200, 100, 50)).save(path, "JPEG")


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
    """Return PSS and RSS in MB; zeros for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return sizes.get("Pss", 0.0), sizes.get("Rss", 0.0)


def watch(process: subprocess.Popen[bytes]) -> tuple[Peaks, Peaks]:
    """Return the peaks of the PSS of each kind of process, and their sum, and of the RSS of any one of a kind.

    The sum of the peaks is steadier than the peak of the sums, which short runs may miss.
    """
    pss_peaks: Peaks = defaultdict(float)
    rss_peaks: Peaks = defaultdict(float)
    while process.poll() is None:
        now: Peaks = defaultdict(float)
        for pid, kind in processes(process.pid):
            pss, rss = measure(pid)
            now[kind] += pss
            rss_peaks[kind] = max(rss_peaks[kind], rss)
        for kind, size in now.items():
            pss_peaks[kind] = max(pss_peaks[kind], size)
        pss_peaks["all"] = sum(size for kind, size in pss_peaks.items() if kind != "all")
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return pss_peaks, rss_peaks


def run(source: str, output: Path, args: argparse.Namespace, rows: int) -> tuple[Peaks, Peaks, float]:
    partitions = max(1, rows // args.partition_rows) if args.partition_rows else 1
    command = [
        *(
            sys.executable,
            "-m",
            "clip_retrieval",
            "inference",
            "--input_dataset",
            source,
            "--output_folder",
            str(output),
        ),
        *("--input_format", args.format, "--clip_model", args.model, "--device", args.device),
        *("--num_prepro_workers", str(args.readers), "--output_partition_count", str(partitions)),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    pss, rss = watch(process)
    if process.returncode:
        sys.exit(f"the run of {rows} rows ended with code {process.returncode}")
    return pss, rss, time.perf_counter() - start


def main() -> None:
    args = parse_arguments()
    kinds = [kind for kind in ("run", "workers", "readers") if kind != "workers" or "," in args.device]
    print(f"peak MB, {args.format}, {args.device}, {args.readers} readers, model {args.model}\n")
    print(
        "| rows | s | " + " | ".join(f"{kind} (PSS)" for kind in (*kinds, "all")) + " | largest RSS of one | growth |"
    )
    print("|--:" * (len(kinds) + 5) + "|")
    first = 0.0
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as scratch:
            source, output = make_input(Path(scratch), args, rows), Path(scratch) / "output"
            pss, rss, seconds = run(source, output, args, rows)
            shutil.rmtree(output)
        first = first or pss["all"]
        sizes = " | ".join(f"{pss[kind]:.0f}" for kind in (*kinds, "all"))
        growth = pss["all"] / first
        mark = "" if growth <= FLAT else " (not flat)"
        print(f"| {rows:,} | {seconds:.0f} | {sizes} | {max(rss.values()):.0f} | {growth - 1:+.1%}{mark} |", flush=True)


if __name__ == "__main__":
    main()
