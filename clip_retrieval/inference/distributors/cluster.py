"""Workers as tasks of Spark or Ray, which run them where there is room, and again if one dies.

The output folder says what is done and what is given up; the engine only runs tasks, so two copies of one do no harm.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from clip_retrieval.clusters.base import Cluster, show_nothing
from clip_retrieval.clusters.config import ClusterEngine
from clip_retrieval.clusters.open import open_cluster
from clip_retrieval.encoder.devices import list_devices, may_take_gpu
from clip_retrieval.errors import ClipRetrievalError, ClusterError
from clip_retrieval.inference.attempts import is_given_up
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.distributors.arrivals import Arrivals
from clip_retrieval.inference.plan import Plan, PlannedRun, open_plan
from clip_retrieval.inference.telemetry.live import Live, News, Teller, repeating
from clip_retrieval.inference.worker.kept import keep_equipment
from clip_retrieval.inference.worker.worker import run_worker
from clip_retrieval.layout import ATTEMPTS_FOLDER, Partition
from clip_retrieval.options import from_json, to_json
from clip_retrieval.process.resources import CORES_VARIABLE
from clip_retrieval.words import counted

logger = logging.getLogger(__name__)

MOST_TASKS = 10_000  # of one job: Spark's driver holds 10 kB for each
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LISTINGS = 30.0  # of a store
SHARE_OF_LOOKS = 0.05  # of the time, so that a slow listing happens less often


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a task needs besides the numbers of its partitions."""

    config: str  # the run's options, as JSON
    folder: str  # that relative paths of the options start from
    run: str
    cores: int | None  # that the engine reserves for a task
    gpu_of_task: Callable[[], str | None]


def make_on_cluster(run: PlannedRun, live: Live, engine: ClusterEngine) -> None:
    """Make the missing partitions on a cluster; raises ClusterError if it can make none of what is left."""
    uses_gpus = may_take_gpu(run.config.encoder)
    with open_cluster(engine, run.config.cluster, show_nothing, uses_gpus=uses_gpus) as cluster:
        make_in_tasks(cluster, run, Arrivals(run, live))


def make_in_tasks(cluster: Cluster, run: PlannedRun, arrivals: Arrivals) -> None:
    """Run jobs until all partitions are made or given up; raises ClusterError after one that made none."""
    order = Order(
        config=json.dumps(to_json(run.config)),
        folder=str(Path.cwd()),
        run=run.run,
        cores=cluster.cores_of_task,
        gpu_of_task=cluster.gpu_of_task,
    )
    left: Sequence[Partition] = arrivals.missing()
    while left:
        error = attempt(cluster, partial(make_some, order), left, arrivals)
        before, left = len(left), without_given_up(run, arrivals.missing())
        if len(left) == before:
            raise error or not_to_be_seen(run, cluster)
        if left:
            why = error or "the tasks ended"
            logger.warning("%s; %s tried again", why, counted(len(left), "partition is", "partitions are"))


def attempt(
    cluster: Cluster, function: Callable[[Sequence[int]], None], left: Sequence[Partition], arrivals: Arrivals
) -> ClusterError | None:
    """Run a task for each partition, or for some, and report what arrives meanwhile; return why the job ended early."""
    look = Looks(arrivals)
    with repeating(SECONDS_BETWEEN_LOOKS, look):
        try:
            cluster.run("embedding", function, cut([partition.id for partition in left]))
        except ClusterError as error:
            return error
    return None


def cut(numbers: Sequence[int], most: int = MOST_TASKS) -> list[Sequence[int]]:
    """Cut partition numbers into at most `most` contiguous runs, whose lengths differ by at most one."""
    count = min(len(numbers), most)
    bounds = [len(numbers) * i // count for i in range(count + 1)]
    return [numbers[bounds[i] : bounds[i + 1]] for i in range(count)]


class Looks:
    """Looks into the output folder repeatedly, less often if that takes long."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.least = 0.0 if arrivals.run.folder.is_local else SECONDS_BETWEEN_LISTINGS
        self.next = time.monotonic() + self.least

    def __call__(self) -> None:
        begun = time.monotonic()
        if begun < self.next:
            return
        with suppress(ClipRetrievalError, OSError):  # the job goes on, and real problems fail elsewhere
            self.arrivals.look()
        now = time.monotonic()
        self.next = now + max(self.least, (now - begun) / SHARE_OF_LOOKS)


def without_given_up(run: PlannedRun, missing: Sequence[Partition]) -> list[Partition]:
    """Return the partitions that the run would try again; it takes a listing, and one for each that failed."""
    tried = set(run.folder.subfolders(ATTEMPTS_FOLDER)) if missing else set()
    return [part for part in missing if part.name not in tried or not is_given_up(run.folder, part, run.run)]


def not_to_be_seen(run: PlannedRun, cluster: Cluster) -> ClusterError:
    return ClusterError(
        f"{cluster.name} ended the tasks, and what they made is not in {run.folder.url} here; every node has to see "
        "that folder under this name: put it on a file system that they share, or on a store"
    )


def make_some(order: Order, numbers: Sequence[int]) -> None:
    """Make some partitions in this process of a cluster, on the device that the engine gives to the task."""
    keep_equipment()
    if order.cores is not None:
        os.environ.setdefault(CORES_VARIABLE, str(order.cores))
    with chdir(order.folder) if Path(order.folder).is_dir() else nullcontext():
        plan = plan_of(order.config, order.run)
        run_worker(plan, numbers, device_of(plan.config, order.gpu_of_task()), Teller(ignore))


def ignore(news: News) -> None:
    """Ignore news of a worker on another machine: the folder shows what it does."""


@lru_cache(maxsize=1)
def plan_of(config: str, run: str) -> Plan:
    """Return the plan of a run, read once by each process."""
    return open_plan(from_json(InferenceConfig, json.loads(config)), run)


def device_of(config: InferenceConfig, gpu: str | None) -> str:
    """Return torch's name of the device: the GPU of this number, as the driver counts, if the model can use one."""
    first = list_devices(config.encoder)[0]
    if gpu is None or not may_take_gpu(config.encoder) or not first.startswith("cuda"):
        return first
    visible = [number.strip() for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return f"cuda:{visible.index(gpu) if gpu in visible else gpu}"
