"""Commands that make embeddings."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig


@click.command()
@with_config(InferenceConfig)
def inference(config: InferenceConfig) -> Outcome:
    """Embed a folder of pictures, or tars, into OUTPUT_FOLDER.

    A run that was stopped, or killed, goes on where it was when the same command is given again.
    """
    return run_or_estimate(config)


@click.command("inference.worker")
@with_config(WorkerConfig)
def inference_worker(config: WorkerConfig) -> Outcome:
    """Make some partitions of a run that is shared out by hand, such as one to a machine."""
    return run_or_estimate(config.run, config.tasks)


def run_or_estimate(config: InferenceConfig, tasks: tuple[int, ...] | None = None) -> Outcome:
    """Make all partitions, or those of `tasks`; with --dry_run, estimate what that takes."""
    from clip_retrieval.commands.reports.estimate import print_estimate
    from clip_retrieval.commands.reports.inference import print_summary
    from clip_retrieval.inference.dry_run.measure import estimate_run
    from clip_retrieval.inference.run import run_inference

    if config.dry_run:
        return Outcome(estimate_run(config, tasks), print_estimate)
    return Outcome(run_inference(config, tasks), print_summary)
