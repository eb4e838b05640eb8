"""Commands that make embeddings."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import click

from clip_retrieval.commands import Outcome, json_option, with_config, with_json
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig


@click.command()
@with_config(InferenceConfig)
def inference(config: InferenceConfig) -> Outcome:
    """Embed a folder of pictures, or tars, into OUTPUT_FOLDER.

    If a run was stopped or killed, run the same command again: it continues from there.
    """
    return run_or_estimate(config)


@click.command("inference.worker")
@with_config(WorkerConfig)
def inference_worker(config: WorkerConfig) -> Outcome:
    """Make some partitions of a run that is distributed by hand, such as one partition per machine."""
    return run_or_estimate(config.run, config.tasks)


@click.command("inference.slurm_worker")
@with_json
def slurm_worker() -> Outcome:
    """Make the partitions of one task of Slurm.

    Its only options are environment variables: WORKER_ARGS_PATH (a json file with options of `inference`), NUM_TASKS
    (partitions), WORLD_SIZE (workers), SLURM_PROCID (the number of this worker) and SLURM_LOCALID (the device to use).
    """
    from clip_retrieval.commands.reports.slurm import print_task
    from clip_retrieval.inference.distributors.slurm_worker import run_task

    return Outcome(run_task(os.environ), print_task)


def leave_to_slurm(config: InferenceConfig) -> Outcome:
    """Show the script, or submit and leave."""
    from clip_retrieval.commands.reports.slurm import print_script, print_submitted
    from clip_retrieval.inference.run import preview_scripts, submit_inference

    if config.slurm.slurm_print:
        return Outcome({"script": preview_scripts(config)}, print_script)
    return Outcome(submit_inference(config), print_submitted)


def run_or_estimate(config: InferenceConfig, tasks: tuple[int, ...] | None = None) -> Outcome:
    """Make all partitions, or only `tasks`; with --dry_run, estimate the cost."""
    from clip_retrieval.commands.reports.estimate import print_estimate
    from clip_retrieval.commands.reports.inference import print_plan, print_summary
    from clip_retrieval.inference.dry_run.measure import estimate_run
    from clip_retrieval.inference.run import plan_only, run_inference

    if config.plan_only and tasks is None:
        return Outcome(plan_only(config), print_plan)
    if config.dry_run:
        return Outcome(estimate_run(config, tasks), print_estimate)
    if config.leaves_run and tasks is None:
        return leave_to_slurm(config)
    return Outcome(run_inference(config, tasks), print_summary)


@click.command()
@click.argument("output_folder")
@click.option("--watch", is_flag=True, help="Look again every few seconds, until the run is complete.")
@click.option("--check", is_flag=True, help="Read all files of finished partitions, and name those that are damaged.")
@json_option
def status(output_folder: str, *, watch: bool, check: bool, as_json: bool) -> None:
    """Show the progress of a run of `inference`, by its OUTPUT_FOLDER: done, running, lost and failed partitions.

    With --watch and --json, each look is one line of json. With --check, embeddings are compared with their checksums,
    and the exit code is 1 where anything is damaged.
    """
    from clip_retrieval.commands.reports.status import print_status, watch_run
    from clip_retrieval.inference.all_files import check_files
    from clip_retrieval.inference.status import read_status, seconds_between_looks

    if watch and check:
        raise ConfigError("--check reads every file once; leave --watch out")
    if not watch:
        found = read_status(output_folder)
        found = replace(found, checked=check_files(output_folder)) if check else found
        exit_code = int(found.checked is not None and bool(found.checked.damage))
        Outcome(found, print_status, exit_code).show(as_json=as_json)
    elif as_json:
        watch_as_json(output_folder)
    else:
        watch_run(lambda: read_status(output_folder), seconds_between_looks(output_folder))


def watch_as_json(output_folder: str) -> None:
    from clip_retrieval.inference.status import read_status, seconds_between_looks

    while not (seen := read_status(output_folder)).is_complete:
        click.echo(json.dumps(seen.to_json()))
        time.sleep(seconds_between_looks(output_folder))
    click.echo(json.dumps(seen.to_json()))
