"""kill -9 a run at random moments, run it again, and compare with an undisturbed one, byte by byte.

python benchmarks/kill.py [--kills 10] [--victims all|readers|worker] [--shards 20] [--samples 192] [--model demo]

Of `readers`, all that there are are killed twice in a run, which has to end well by itself; of two `worker` processes,
one is killed.
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


def command(shards: Path, out: Path, args: argparse.Namespace) -> list[str]:
    device = "cpu,cpu" if args.victims == "worker" else "cpu"
    return [
        *(sys.executable, "-m", "clip_retrieval", "inference", str(shards), str(out), "webdataset", "--device", device),
        *("--clip_model", args.model, "--output_partition_count", "20", "--enable_metadata", "--batch_size", "16"),
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
    parser.add_argument("--victims", choices=["all", "readers", "worker"], default="all")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--samples", type=int, default=192, help="in each shard")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def children(group: int, module: str) -> list[int]:
    """Return the processes of a group that run a module."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            is_one = folder.name.isdigit() and module in (folder / "cmdline").read_text()
            if is_one and os.getpgid(int(folder.name)) == group:
                found.append(int(folder.name))
        except OSError:
            continue  # it ended while we looked
    return sorted(found)


def strike(process: subprocess.Popen[bytes], victims: str) -> None:
    if victims == "all":
        os.killpg(process.pid, signal.SIGKILL)
        return
    pids = children(process.pid, f"clip_retrieval.inference.{victims.removesuffix('s')}_process")
    for pid in pids[:1] if victims == "worker" else pids:
        os.kill(pid, signal.SIGKILL)


def kill_after(moments: list[float], run: list[str], victims: str) -> int:
    """Start the run, and kill the victims at those seconds; return its exit code."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    process = subprocess.Popen(run, start_new_session=True, **quiet)
    for moment in moments:
        try:
            process.wait(max(0.0, start + moment - time.perf_counter()))
        except subprocess.TimeoutExpired:
            strike(process, victims)
    return process.wait()


def main() -> None:
    args = parse_arguments()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_shards(work / "shards", args.samples * args.shards, args.samples, 256)
        start = time.perf_counter()
        subprocess.run(command(work / "shards", work / "calm", args), check=True, capture_output=True)
        calm_seconds = time.perf_counter() - start
        expected = digests(work / "calm")
        print(f"undisturbed: {calm_seconds:.1f} s, {len(expected)} files")
        all_well = True
        for kill in range(args.kills):
            out, strikes = work / f"killed{kill}", 2 if args.victims == "readers" else 1
            moments = sorted(rng.uniform(0, calm_seconds) for _ in range(strikes))
            run = command(work / "shards", out, args)
            code = kill_after(moments, run, args.victims)
            before = finished(out)
            if args.victims == "all":
                subprocess.run(run, check=True, capture_output=True)
            after = finished(out)
            again = sum(after[path] != written for path, written in before.items())
            same, left = digests(out) == expected, len(list(out.rglob("*partial*")))
            all_well = all_well and same and not again and not left and (args.victims == "all" or code == 0)
            when = ", ".join(f"{moment:.1f}" for moment in moments)
            print(
                f"kill {kill + 1} after {when} s: code {code}, {len(before):2} of {args.shards} partitions whole; at "
                f"the end: same bytes {same}, made twice {again}, left over {left}",
                flush=True,
            )
        sys.exit(0 if all_well else 1)


if __name__ == "__main__":
    main()
