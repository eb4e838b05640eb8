"""Where workers run. A distributor is a function that makes the missing partitions of a planned run.

It may run `run_worker(plan, partition_ids, device, report)` anywhere, several times for one partition if necessary: the
folder alone says what is done. It reports to `live` what it hears from its workers.

On other machines a worker gets its plan by `open_plan(config, run.run)`. A process that is given partitions one by one
calls `keep_equipment()` first, so that its model stays open in between. A FailedPartitionsError is worth another try.
All workers skip a partition that failed twice in a run; the process that began the run names it at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import assert_never

from clip_retrieval.inference.distributors.cluster import make_on_cluster
from clip_retrieval.inference.distributors.local import make_on_devices
from clip_retrieval.inference.distributors.sequential import make_here
from clip_retrieval.inference.distributors.slurm import make_on_slurm
from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live

Distributor = Callable[[PlannedRun, Live], None]


def open_distributor(run: PlannedRun) -> Distributor:
    """Return the distributor that the options name; without one, a process for each device if there are several."""
    strategy = run.config.distribution_strategy
    match strategy:
        case None:
            return make_on_devices if min(len(run.devices), len(run.missing)) > 1 else make_here
        case "sequential":
            return make_here
        case "multiprocess":
            return make_on_devices
        case "pyspark" | "ray":
            return partial(make_on_cluster, engine=strategy)
        case "slurm":
            return make_on_slurm
        case _:
            assert_never(strategy)
