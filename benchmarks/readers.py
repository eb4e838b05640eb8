"""What the readers can do: the whole pipeline with an encoder that costs nothing, on one core, two, and so on.

    python benchmarks/readers.py [--count 8192] [--side 256] [--cores 1 2]

Images a second from tars to embeddings, prepared at 224 px, with the cores that the process may use set beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from make_data import write_shards

SIZE = 224


def run(source: Path, out: Path, cores: int) -> dict[str, float]:
    def restrict() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    command = [sys.executable, "-m", "clip_retrieval", "inference", str(source), str(out), "--json"]
    command += ["--input_format", "webdataset", "--enable_text", "False", "--clip_model", f"hash:64?size={SIZE}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=restrict)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "shards"
        write_shards(source, args.count, 1024, args.side)
        rates: dict[int, list[float]] = {cores: [] for cores in args.cores}
        for number in range(args.runs):
            for cores in args.cores:
                rates[cores].append(run(source, Path(scratch) / f"{number}-{cores}", cores)["rate"])
        least = args.cores[0]
        for cores, found in rates.items():
            rate = statistics.median(found)
            gain = rate / statistics.median(rates[least])
            spread = f"({min(found):.0f}-{max(found):.0f})"
            print(f"{cores} cores: {rate:8.1f} images/s {spread}, {rate / cores:.1f} for each, {gain:.2f} x {least}")
    print(f"copied per image: {2 * 3 * SIZE * SIZE:,} bytes of pixels (into the shared slot, and into the batch)")


if __name__ == "__main__":
    main()
