"""Where workers run. A distributor is a function that has the missing partitions of a planned run made.

It may run `run_worker(plan, partition_ids, device, report)` wherever it likes, several times for one partition if need
be: what is done is known from the folder alone. It tells `live` what it hears of its workers.
"""

from __future__ import annotations

from collections.abc import Callable

from clip_retrieval.inference.distributors.local import make_on_devices
from clip_retrieval.inference.distributors.sequential import make_here
from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live

Distributor = Callable[[PlannedRun, Live], None]


def open_distributor(run: PlannedRun) -> Distributor:
    """Return the distributor: this process for one device, a process per device for several."""
    return make_on_devices if min(len(run.devices), len(run.missing)) > 1 else make_here
