"""Embed many small partitions through an engine while some of its tasks are killed; compare with a run in one process.

python benchmarks/distributed.py --engine ray [--partitions 2000] [--samples 4] [--kills 0.01] [--options "..."]

The model is weight-free, so that the engine's overhead is what is measured. A kill is SIGKILL for a random worker
process, when a random number of partitions is finished. Prints missing partitions, files that differ, seconds, and what
a partition costs above the same partition in one process. Another engine is a function in ENGINES.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from make_data import write_shards

COMPARED = ("img_emb", "text_emb", "metadata", "failures")
MARK = f"CLIP_RETRIEVAL_BENCHMARK={os.getpid()}.{time.time_ns()}"  # in the environment of all that is started here
HELPERS = Path(__file__).parents[1] / "tests" / "clusters"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an engine is asked for, and what its worker processes are called."""

    options: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    worker: str = ""  # part of the command line of a process that makes partitions
    workers: int = 1  # at once


@contextmanager
def sequential(args: argparse.Namespace) -> Iterator[Engine]:
    del args
    yield Engine(options=["--distribution_strategy", "sequential"])


@contextmanager
def multiprocess(args: argparse.Namespace) -> Iterator[Engine]:
    devices = ",".join(["cpu"] * args.workers)
    options = ["--distribution_strategy", "multiprocess", "--device", devices]
    yield Engine(options=options, worker="distributors.worker_process", workers=args.workers)


@contextmanager
def daemons(program: str, *arguments: str) -> Iterator[str]:
    """Run a helper of the tests that starts an engine, and yield the line that it says when that is there."""
    command = [sys.executable, str(HELPERS / program), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def slurm(args: argparse.Namespace) -> Iterator[Engine]:
    """Start a Slurm of two nodes for the run."""
    tasks = max(2, 2 * round(args.kills * args.partitions))  # each kill ends an array task
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        daemons("local_slurm.py", folder) as configuration,
    ):
        nodes = ["--slurm_nodes", str(args.workers), "--slurm_tasks", str(tasks)]
        yield Engine(
            options=["--distribution_strategy", "slurm", *nodes],
            environment={"SLURM_CONF": configuration, "PATH": os.environ["PATH"] + ":/usr/sbin"},
            worker="inference.slurm_worker",
            workers=args.workers,
        )


@contextmanager
def pyspark(args: argparse.Namespace) -> Iterator[Engine]:
    """Start a master and two workers of one core."""
    with tempfile.TemporaryDirectory(prefix="spark-") as folder, daemons("local_spark.py", folder) as line:
        about = json.loads(line)
        with (Path(folder) / "spark-defaults.conf").open("a") as settings:
            settings.write(f"spark.cores.max {args.workers}\n")
        yield Engine(
            options=["--distribution_strategy", "pyspark", "--spark_master", about["address"]],
            environment=about["environment"],
            worker="pyspark.daemon",
            workers=args.workers,
        )


@contextmanager
def ray(args: argparse.Namespace) -> Iterator[Engine]:
    """Start two nodes of one core; a single worker takes the second one alone."""
    with daemons("local_ray.py") as line:
        resources = ["--ray_resources", "CPU=1,second=1"] if args.workers == 1 else []
        yield Engine(
            options=["--distribution_strategy", "ray", "--ray_address", json.loads(line)["address"], *resources],
            worker="ray::run_task",
            workers=args.workers,
        )


ENGINES: dict[str, Callable[[argparse.Namespace], AbstractContextManager[Engine]]] = {
    "multiprocess": multiprocess,
    "pyspark": pyspark,
    "ray": ray,
    "sequential": sequential,
    "slurm": slurm,
}


def processes(part: str) -> list[int]:
    """Return this benchmark's Python processes whose command line has this part."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            program = command.split(" ")[0]
            is_ours = MARK.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid()
            # Ray writes the name of a task over command line and environment.
            if part and ((part in command and "python" in program and is_ours) or program == part):
                found.append(int(folder.name))
    return found


def finished(out: Path) -> int:
    return len(list((out / "metadata").glob("*.parquet")))


def kill_some(out: Path, engine: Engine, args: argparse.Namespace, stop: threading.Event) -> list[int]:
    """Kill a random worker each time so many partitions are finished; return at how many that was."""
    rng = random.Random(args.seed)
    moments = sorted(rng.sample(range(args.partitions), round(args.kills * args.partitions)))
    done: list[int] = []
    while len(done) < len(moments) and not stop.wait(0.05):
        workers = processes(engine.worker)
        if workers and finished(out) >= moments[len(done)]:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                done.append(finished(out))
    return done


def embed(shards: Path, out: Path, engine: Engine, args: argparse.Namespace) -> float:
    """Run inference; return its seconds. Ends the benchmark where it fails."""
    command = [sys.executable, "-m", "clip_retrieval", "inference", str(shards), str(out), "webdataset"]
    command += ["--clip_model", "hash:16?size=32", "--num_prepro_workers", "0", "--batch_size", "8"]
    command += ["--output_partition_count", str(args.partitions), *engine.options]
    begun = time.perf_counter()
    subprocess.run(command, env={**os.environ, **engine.environment}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def contents(out: Path) -> dict[str, bytes]:
    files = (path for part in COMPARED for path in (out / part).glob("*"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def span(out: Path) -> float:
    """Return the seconds from the first finished partition to the last: what is left without start and end."""
    times = [path.stat().st_mtime for path in (out / "metadata").glob("*.parquet")]
    return max(times) - min(times)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=sorted(ENGINES), required=True)
    parser.add_argument("--partitions", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=4, help="in each partition")
    parser.add_argument("--kills", type=float, default=0.01, help="kills for each partition")
    parser.add_argument("--workers", type=int, default=2, help="at once; the engines here have two")
    parser.add_argument("--options", default="", help="more options of the run through the engine")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    with tempfile.TemporaryDirectory(prefix="distributed-") as folder:
        shards, here, out = (Path(folder) / name for name in ("shards", "here", "out"))
        write_shards(shards, args.partitions * args.samples, args.samples, side=32)
        with sequential(args) as engine:
            alone = embed(shards, here, engine, args)
        with ENGINES[args.engine](args) as engine:
            engine.options.extend(shlex.split(args.options))
            stop = threading.Event()
            killed: list[int] = []
            killer = threading.Thread(target=lambda: killed.extend(kill_some(out, engine, args, stop)))
            killer.start()
            try:
                seconds = embed(shards, out, engine, args)
            finally:
                stop.set()
                killer.join()
        expected, made = contents(here), contents(out)
        differ = [name for name in expected if name in made and made[name] != expected[name]]
        missing = args.partitions - finished(out)
        spans = span(out), span(here)
    above = (spans[0] * engine.workers - spans[1]) / args.partitions
    print(f"{args.engine}: {args.partitions} partitions of {args.samples} samples, {len(killed)} workers killed")
    print(f"{missing} partitions missing, {len(differ)} of {len(expected)} files differ")
    print(f"{seconds:.1f} s with {engine.workers} workers, {alone:.1f} s in one process")
    print(f"{spans[0]:.1f} s and {spans[1]:.1f} s of it from the first partition to the last")
    print(f"{above * 1000:.1f} ms of overhead for a partition")
    sys.exit(1 if missing or differ or expected.keys() != made.keys() else 0)


if __name__ == "__main__":
    main()
