"""kill -9 a run at random moments, run it again, and compare with an undisturbed one, byte by byte.

python benchmarks/kill.py [--kills 10] [--shards 20] [--samples 192] [--model demo]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from make_data import write_shards

COMPARED = ("img_emb", "text_emb", "metadata", "failures")


def command(shards: Path, out: Path, model: str) -> list[str]:
    return [
        *(sys.executable, "-m", "clip_retrieval", "inference", str(shards), str(out), "webdataset"),
        *("--clip_model", model, "--output_partition_count", "20", "--enable_metadata", "--batch_size", "16"),
    ]


def digests(out: Path) -> dict[str, str]:
    files = sorted(path for part in COMPARED for path in (out / part).glob("*"))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished(out: Path) -> dict[Path, int]:
    """Return the finished partitions' files and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (out / "metadata").glob("*.parquet")}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--samples", type=int, default=192, help="in each shard")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def kill_after(moment: float, run: list[str]) -> None:
    """Start the run, and kill it and all its children at that second."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(run, start_new_session=True, **quiet)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    args = parse_arguments()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_shards(work / "shards", args.samples * args.shards, args.samples, 256)
        start = time.perf_counter()
        subprocess.run(command(work / "shards", work / "calm", args.model), check=True, capture_output=True)
        calm_seconds = time.perf_counter() - start
        expected = digests(work / "calm")
        print(f"undisturbed: {calm_seconds:.1f} s, {len(expected)} files")
        all_well = True
        for kill in range(args.kills):
            out, moment = work / f"killed{kill}", rng.uniform(0, calm_seconds)
            run = command(work / "shards", out, args.model)
            kill_after(moment, run)
            before = finished(out)
            subprocess.run(run, check=True, capture_output=True)
            after = finished(out)
            again = sum(after[path] != written for path, written in before.items())
            same, left = digests(out) == expected, len(list(out.rglob("*partial*")))
            all_well = all_well and same and not again and not left
            print(
                f"kill {kill + 1} after {moment:4.1f} s, {len(before):2} of {args.shards} partitions whole; after the "
                f"rerun: same bytes {same}, made twice {again}, left over {left}"
            )
        sys.exit(0 if all_well else 1)


if __name__ == "__main__":
    main()
