"""Commands that make embeddings."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import json_option, print_json
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config


@click.command()
@config_options(InferenceConfig)
@json_option
def inference(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Embed a folder of pictures, or tars, into OUTPUT_FOLDER.

    A run that was stopped, or killed, goes on where it was when the same command is given again.
    """
    from clip_retrieval.commands.reports.estimate import print_estimate
    from clip_retrieval.commands.reports.inference import print_summary
    from clip_retrieval.inference.dry_run.measure import estimate_run
    from clip_retrieval.inference.run import run_inference

    config = build_config(InferenceConfig, given_options(options), arguments)
    if config.dry_run:
        estimate = estimate_run(config)
        print_json(estimate.to_json()) if as_json else print_estimate(estimate)
        return
    summary = run_inference(config)
    print_json(summary.to_json()) if as_json else print_summary(summary)


@click.command("inference.worker")
@config_options(WorkerConfig)
@json_option
def inference_worker(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Make some partitions of a run that is shared out by hand, such as one to a machine."""
    from clip_retrieval.commands.reports.estimate import print_estimate
    from clip_retrieval.commands.reports.inference import print_summary
    from clip_retrieval.inference.dry_run.measure import estimate_tasks
    from clip_retrieval.inference.run import run_tasks

    config = build_config(WorkerConfig, given_options(options), arguments)
    if config.run.dry_run:
        estimate = estimate_tasks(config)
        print_json(estimate.to_json()) if as_json else print_estimate(estimate)
        return
    summary = run_tasks(config)
    print_json(summary.to_json()) if as_json else print_summary(summary)
