"""The command `inference`: plans a run, distributes it to workers, sums up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from clip_retrieval.clusters.slurm_config import SlurmConfig
from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.early_conversion import EarlyConversion
from clip_retrieval.errors import ConfigError, WorkerError
from clip_retrieval.inference.attempts import explain_left, forget_attempts
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.distributors import open_distributor
from clip_retrieval.inference.distributors.sequential import make_here
from clip_retrieval.inference.distributors.slurm import Submitted, submit_or_find, words_when_left
from clip_retrieval.inference.distributors.slurm_jobs import SlurmJobs
from clip_retrieval.inference.plan import PlannedRun, choose, open_output, open_saved, plan_run, publish_plan
from clip_retrieval.inference.resume import is_revised
from clip_retrieval.inference.revisions.retry import retry_failed
from clip_retrieval.inference.revisions.update import update_folder
from clip_retrieval.inference.saved_plan import remove_plan
from clip_retrieval.inference.summary import RunSummary, check_outcome, sum_up
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.telemetry.wip import remove_wip
from clip_retrieval.layout import JOURNAL, EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.options import build_config
from clip_retrieval.process.interrupts import ending_with
from clip_retrieval.revision import finish_revision, only_one
from clip_retrieval.sources import open_source
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.subset import Subset
from clip_retrieval.storage import check_writable

logger = logging.getLogger(__name__)

HERE = (None, "sequential", "multiprocess")  # distribution strategies whose workers run on this machine


def clip_inference(*arguments: object, **options: object) -> RunSummary:
    """Embed a dataset; takes the flags of `clip-retrieval inference` as keywords, or by position.

    Raises ClipRetrievalError if the input, the model or the output cannot be used. A run that was stopped goes
    on from there when it is called again.
    """
    return run_inference(build_config(InferenceConfig, options, arguments))


def run_inference(config: InferenceConfig, tasks: Sequence[int] | None = None) -> RunSummary:
    """Make all partitions, or those of `tasks`, that are not done yet; `tasks` are made on this machine."""
    if config.dry_run or config.plan_only:
        raise ConfigError("dry_run and plan_only make nothing; call estimate_inference, or inference.run.plan_only")
    with EarlyConversion() as conversion:
        if tasks is not None:
            return make(open_tasks(config, tasks, conversion), conversion, is_whole=False)
        folder, source = open_both(config, conversion)
        if (config.update or config.retry_failed) and read_manifest(folder) and folder.has_partitions():
            return revise(config, folder, source)
        return make(plan_run(config, folder, source), conversion, is_whole=True)


def make(run: PlannedRun, conversion: EarlyConversion, *, is_whole: bool) -> RunSummary:
    """Make the missing partitions; `is_whole`: no other command makes some of the same run."""
    folder = run.folder
    if run.missing:
        distribute = open_distributor(run)
        if is_whole and distribute is not make_here:
            publish_plan(run)
        live = Live(len(run.missing))
        with watching(run.config, live), ending_with(lambda: when_stopped(run)):
            try:
                conversion.wait()
                distribute(run, live)
            finally:
                folder.remove_leftovers()
    folder.remove_leftovers()
    check_made(run)
    remove_wip(folder, run.chosen)
    forget_attempts(folder, run.chosen)
    if is_whole:
        remove_plan(folder)
    summary = sum_up(folder, run.chosen, run.missing)
    check_outcome(run.config, summary.stats)
    return summary


def submit_inference(config: InferenceConfig) -> Submitted | RunSummary:
    """Submit to Slurm what is missing, without waiting; sum up if nothing is missing."""
    run = plan_run(config, *open_both(config))
    if not run.missing:
        return run_inference(config)
    publish_plan(run)
    return submit_or_find(run)


def preview_scripts(config: InferenceConfig) -> str:
    """Return the scripts that would be submitted to Slurm; writes nothing."""
    folder = open_output(config)
    run = plan_run(config, folder, open_source(config.source, config.output_folder))
    return SlurmJobs(plan=run).preview(len(run.missing))


def open_both(config: InferenceConfig, conversion: EarlyConversion | None = None) -> tuple[EmbeddingsFolder, Source]:
    """Return output, which must be writable, and input; an interrupted revision is finished first.

    The model is converted while the input is listed, if it runs on this machine.
    """
    folder = open_whole_output(config)
    if conversion is not None and config.distribution_strategy in HERE and not (config.update or config.retry_failed):
        conversion.begin(config.encoder)
    source = open_source(config.source, config.output_folder)
    check_writable(folder)
    return folder, source


def open_whole_output(config: InferenceConfig) -> EmbeddingsFolder:
    folder = open_output(config)
    if folder.exists(JOURNAL):
        with only_one(folder):
            finish_revision(folder)
    return folder


def plan_only(config: InferenceConfig) -> PlannedRun:
    """Save the plan of a run in its output folder, for `inference.worker` on any machine."""
    run = plan_run(config, *open_both(config))
    publish_plan(run)
    return run


def open_tasks(config: InferenceConfig, tasks: Sequence[int], conversion: EarlyConversion) -> PlannedRun:
    """Return these tasks of the plan that was saved or, without one, of a plan that lists the input."""
    config = dataclasses.replace(config, distribution_strategy=None, slurm=SlurmConfig())
    folder = open_whole_output(config)
    plan = None if is_revised(folder) else open_saved(config)
    if plan is not None:
        check_writable(folder)
        return choose(plan, list_devices(config.encoder), tasks)
    if config.output_partition_count is None:
        raise ConfigError(
            "output_partition_count must be given: every worker of a run needs the same one; or save a plan first, "
            "with `clip-retrieval inference ... --plan_only`"
        )
    return plan_run(config, *open_both(config, conversion), tasks)


def check_made(run: PlannedRun) -> None:
    """Raise WorkerError, with the reasons, if a partition of a run is missing."""
    made = run.folder.done_among(run.missing)
    left = [partition for partition in run.missing if partition.name not in made]
    if left:
        raise WorkerError(explain_left(run.folder, left, run.run))


def revise(config: InferenceConfig, folder: EmbeddingsFolder, source: Source) -> RunSummary:
    """Update an existing folder, or try again what failed."""
    with only_one(folder):
        finish_revision(folder)
        before = folder.partitions()
        whole = source.whole if isinstance(source, Subset) else source  # it names its units
        revised = (update_folder if config.update else retry_failed)(config, folder, whole)
    folder.remove_leftovers()
    partitions = folder.partitions()
    remove_wip(folder, partitions)
    summary = sum_up(folder, partitions, [partition for partition in partitions if partition not in before])
    check_outcome(config, summary.stats)
    return dataclasses.replace(summary, revised=revised)


def when_stopped(run: PlannedRun) -> str:
    """Tidy up after a stopped run; return its last message. What runs on Slurm goes on."""
    return words_when_left(run) if run.config.distribution_strategy == "slurm" else tidy_up(run.folder, run.chosen)


def tidy_up(folder: EmbeddingsFolder, chosen: Sequence[Partition]) -> str:
    """Remove the unfinished files of a stopped run; return its last message."""
    folder.remove_leftovers(own=True)
    remove_wip(folder, chosen)
    there = folder.done_among(chosen)
    done = sum(partition.name in there for partition in chosen)
    smaller = "" if len(chosen) > 1 else " (a new run with a smaller --write_batch_size keeps more)"
    return f"stopped: {done} of {len(chosen)} partitions are done; give the same command again to go on{smaller}"
