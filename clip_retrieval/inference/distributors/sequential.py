"""One worker in this process: one partition after the other on the first device."""

from __future__ import annotations

from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.worker.worker import run_worker


def make_here(run: PlannedRun, live: Live) -> None:
    """Make the missing partitions; raises what the worker raises."""
    report = live.teller()
    report.estimate_total = lambda: run.estimate_samples(run.missing)
    run_worker(run, [partition.id for partition in run.missing], run.devices[0], report)
