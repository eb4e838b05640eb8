"""`inference.slurm_worker`: one task of Slurm, which finds in its environment what to do.

NUM_TASKS (partitions), WORLD_SIZE (workers), SLURM_PROCID (which of them this is), WORKER_ARGS_PATH (a json file with
options of `inference`) and SLURM_LOCALID (the device of this node to use; none or empty: a worker on each).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.errors import ClipRetrievalError, ConfigError, WorkerError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.distributors.takeover import OwnAndOthers, share_of
from clip_retrieval.inference.plan import open_plan
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.stats import Stats, add_up
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.worker.worker import run_worker
from clip_retrieval.json_files import parse_json
from clip_retrieval.options import build_config
from clip_retrieval.process.interrupts import StoppedError, stopping_in_time
from clip_retrieval.process.resources import CORES_VARIABLE, count_cores
from clip_retrieval.process.standard_streams import log_to_stderr, say_error
from clip_retrieval.process.subprocesses import describe_end, end_with_parent, start_module
from clip_retrieval.words import printable

SECONDS_TO_END = 5.0  # time for a worker to remove unfinished files
MODULE = "clip_retrieval.inference.distributors.slurm_worker"


@dataclass(frozen=True, kw_only=True)
class SlurmTaskConfig:
    """What one task of Slurm is to do."""

    run: InferenceConfig
    rank: int
    world: int
    local_id: int | None


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """What this task made."""

    partition_count: int
    stats: Stats

    def to_json(self) -> dict[str, Any]:
        return {"partition_count": self.partition_count, **self.stats.to_json()}


def read_task(environment: Mapping[str, str]) -> SlurmTaskConfig:
    """Return the task that the environment describes; raises ConfigError on missing or wrong variables."""
    path = environment.get("WORKER_ARGS_PATH")
    if not path:
        raise ConfigError("WORKER_ARGS_PATH must name a json file with the options of `inference`")
    try:
        options = parse_json(Path(path).read_bytes(), dict[str, Any], path)
    except OSError as error:
        raise ConfigError(f"WORKER_ARGS_PATH: {path} cannot be read: {error.strerror}") from error
    count = number_of(environment, "NUM_TASKS", least=1)
    world = number_of(environment, "WORLD_SIZE", least=1)
    rank = number_of(environment, "SLURM_PROCID", least=0)
    if rank >= world:
        raise ConfigError(f"SLURM_PROCID is {rank}, and WORLD_SIZE only {world}")
    local_id = number_of(environment, "SLURM_LOCALID", least=0) if environment.get("SLURM_LOCALID") else None
    run = build_config(InferenceConfig, {"output_partition_count": count, **options})
    if run.output_partition_count != count:
        raise ConfigError(f"NUM_TASKS is {count}, and output_partition_count {run.output_partition_count} in {path}")
    return SlurmTaskConfig(run=run, rank=rank, world=world, local_id=local_id)


def number_of(environment: Mapping[str, str], name: str, *, least: int) -> int:
    value = environment.get(name, "")
    if not value.isdigit() or int(value) < least:
        raise ConfigError(f"{name} must be a number, at least {least}, not {value!r}")
    return int(value)


def run_task(environment: Mapping[str, str]) -> TaskSummary:
    """Make this task's partitions, and what others leave; workers on several devices report their own figures."""
    task = read_task(environment)
    devices = list_devices(task.run.encoder)
    cores = cores_given(environment, 1 if task.local_id is None else len(devices))
    if cores and CORES_VARIABLE not in environment:
        os.environ[CORES_VARIABLE] = str(cores)
    if task.local_id is None and len(devices) > 1:
        run_on_each(task, devices)
        return TaskSummary(partition_count=0, stats=Stats())
    device = devices[(task.local_id or 0) % len(devices)]
    plan = open_plan(task.run)
    live = Live(len(share_of(len(plan.partitions), task.rank, task.world)))
    with watching(task.run, live):
        made = run_worker(plan, OwnAndOthers(plan=plan, rank=task.rank, world=task.world), device, live.teller())
    return TaskSummary(partition_count=len(made), stats=add_up(stats.to_json() for stats in made))


def cores_given(environment: Mapping[str, str], worker_count: int) -> int | None:
    """Return the cores that Slurm gave to one of so many workers on this node; otherwise only cgroups limit it."""
    of_task, of_node = (environment.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"))
    if of_task.isdigit():
        return int(of_task)
    return max(1, int(of_node) // worker_count) if of_node.isdigit() else None


def run_on_each(task: SlurmTaskConfig, devices: Sequence[str]) -> None:
    """Run a worker on each device, each as a separate task; raises WorkerError if any of them failed."""
    cores = str(max(1, count_cores() // len(devices)))
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(len(devices)):
            environment = {
                "SLURM_PROCID": str(task.rank * len(devices) + i),
                "WORLD_SIZE": str(task.world * len(devices)),
                "SLURM_LOCALID": str(i),
                CORES_VARIABLE: cores,
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores),
            }
            workers.append(start_module(MODULE, **environment))
        failed = [i for i, worker in enumerate(workers) if worker.wait()]
    finally:
        for worker in workers:
            worker.terminate()
        ends = [describe_end(worker, SECONDS_TO_END) for worker in workers]
        for worker in workers:
            worker.kill()
    if failed:
        said = "; ".join(f"the worker on {devices[i]} {ends[i]}" for i in failed)
        raise WorkerError(f"{said}; what it left, others make")


def main() -> None:
    """Run as the worker of one device, whose parent is the node's task."""
    end_with_parent()
    log_to_stderr(logging.INFO)
    try:
        with stopping_in_time():
            run_task(os.environ)
    except StoppedError as stop:
        sys.exit(stop.exit_code)
    except ClipRetrievalError as error:
        say_error(f"Error: {printable(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
