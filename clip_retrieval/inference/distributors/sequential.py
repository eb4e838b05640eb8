"""One worker in this process: one partition after the other on the first device."""

from __future__ import annotations

import logging

from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.worker.worker import FailedPartitionsError, run_worker

logger = logging.getLogger(__name__)


def make_here(run: PlannedRun, live: Live) -> None:
    """Make the missing partitions, and try again what failed; raises what the worker raises."""
    report = live.teller()
    report.estimate_total = lambda: run.estimate_samples(run.missing)
    try:
        run_worker(run, [partition.id for partition in run.missing], run.devices[0], report)
    except FailedPartitionsError as failed:
        logger.warning("%s; trying again", failed)
        run_worker(run, failed.errors, run.devices[0], report)
