"""A worker: one encoder on one device, some partitions. Every distributor ends here."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from clip_retrieval.inference.manifest import describe_options, describe_run
from clip_retrieval.inference.plan import Plan, needs_work
from clip_retrieval.inference.resume import check_folder, claim_folder, settled_precision
from clip_retrieval.inference.telemetry.live import Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.worker.equipment import open_equipment
from clip_retrieval.inference.worker.partition import make_partition


def run_worker(plan: Plan, partition_ids: Iterable[int], device: str, report: Report) -> list[Stats]:
    """Make these partitions on one device, those that are not done yet; return their figures.

    Partitions may come one by one: the next is asked for when the one before it is whole.
    """
    config, source, folder = plan.config, plan.source, plan.folder
    check_folder(folder, describe_options(config, source, plan.partitions))
    missing = (plan.partitions[i] for i in partition_ids if needs_work(folder, plan.partitions[i]))
    first = next(missing, None)
    if first is None:
        return []
    with open_equipment(config, device, source, settled_precision(folder)) as equipment:
        claim_folder(folder, describe_run(config, source, equipment.encoder.info, plan.partitions, equipment.check))
        return [make_partition(equipment, source, folder, partition, report) for partition in chain([first], missing)]
