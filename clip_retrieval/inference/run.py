"""The whole of `inference`: plan, share out among workers, sum up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.blobs import local_path
from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig
from clip_retrieval.inference.distributors.local import run_local
from clip_retrieval.inference.manifest import check_folder, describe_options, is_revised
from clip_retrieval.inference.revisions.retry import retry_failed
from clip_retrieval.inference.revisions.revised import Revised
from clip_retrieval.inference.revisions.update import as_it_was, check_input, update_folder
from clip_retrieval.inference.telemetry.diagnosis import Diagnosis, Machine, Shares, diagnose, shares_of
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.stats import Stats, add_up
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.telemetry.wip import remove_wip
from clip_retrieval.inference.worker.worker import make_plan, needs_work
from clip_retrieval.layout import JOURNAL, EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.options import build_config
from clip_retrieval.process.interrupts import ending_with
from clip_retrieval.process.resources import count_cores
from clip_retrieval.revision import finish_revision, only_one
from clip_retrieval.sources import Source, open_source
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.storage import Folder, check_writable

logger = logging.getLogger(__name__)

PARTITIONS_FOR_EACH_DEVICE = 4  # so that the faster ones do more of them, and none waits long for the last


@dataclass(frozen=True)
class RunSummary:
    """What a run did: its folder, partitions done before and now, the sums over all of them and over those made now."""

    output_folder: str
    partition_count: int
    already_done: int
    wall_seconds: float
    stats: Stats
    now: Stats
    revised: Revised | None = None  # what update or retry_failed did

    @property
    def rate(self) -> float:
        """Samples a second, of all workers together."""
        return (self.now.sample_count + self.now.skipped_count) / max(self.wall_seconds, 1e-9)

    @property
    def shares(self) -> Shares:
        return shares_of(self.now)

    @property
    def diagnosis(self) -> Diagnosis:
        readers = round(self.now.reader_duration / max(self.wall_seconds, 1e-9))
        return diagnose(self.shares, Machine(readers=max(1, readers), cores=count_cores()))

    def to_json(self) -> dict[str, Any]:
        return {
            "output_folder": self.output_folder,
            "partition_count": self.partition_count,
            "already_done": self.already_done,
            "wall_seconds": round(self.wall_seconds, 3),
            **self.stats.to_json(),
            "rate": round(self.rate, 3),
            "shares": self.shares.to_json(),
            "limit": self.diagnosis.limit,
            "diagnosis": self.diagnosis.sentence,
            **({"revised": self.revised.to_json()} if self.revised else {}),
        }


def clip_inference(*arguments: object, **options: object) -> RunSummary:
    """Embed a dataset; takes the flags of `clip-retrieval inference` as keywords, or by position.

    Raises ClipRetrievalError where the input, the model or the output cannot be used. A run that was stopped goes
    on where it was when it is called again.
    """
    return run_inference(build_config(InferenceConfig, options, arguments))


def run_inference(config: InferenceConfig, tasks: Sequence[int] | None = None) -> RunSummary:
    """Make all partitions, or those of `tasks`, that are not done yet."""
    if config.dry_run:
        raise ConfigError("dry_run writes nothing and returns an estimate; call inference.dry_run.estimate_inference")
    parse_uri(config.encoder.clip_model)
    folder = EmbeddingsFolder(config.output_folder)
    check_apart(config, folder)
    if folder.exists(JOURNAL):
        with only_one(folder):
            finish_revision(folder)
    source = open_source(config.source, config.output_folder)
    check_writable(folder)
    if (config.update or config.retry_failed) and read_manifest(folder) and folder.partitions():
        return revise(config, folder, source)
    devices = list_devices(config.encoder)
    config = settle_partition_count(config, folder, source, len(devices))
    chosen = choose_partitions(config, folder, source, tasks)
    missing = [partition for partition in chosen if not is_revised(folder) and needs_work(folder, partition)]
    if missing:
        live = Live(len(missing))
        with watching(config, live), ending_with(lambda: tidy_up(folder, chosen)):
            try:
                run_local(config, source, [partition.id for partition in missing], devices, live)
            finally:
                folder.remove_leftovers()
    folder.remove_leftovers()
    remove_wip(folder, chosen)
    summary = sum_up(folder, chosen, missing)
    check_outcome(config, summary.stats)
    return summary


def settle_partition_count(
    config: InferenceConfig, folder: EmbeddingsFolder, source: Source, device_count: int
) -> InferenceConfig:
    """Keep the partitions of a run that was begun; a new one on several devices gets some for each of them."""
    if config.output_partition_count is not None:
        return config
    manifest = read_manifest(folder) if folder.partitions() else None
    if manifest is not None:
        return dataclasses.replace(config, output_partition_count=manifest["partition_count"])
    if device_count == 1:
        return config
    wanted = min(len(source.units), PARTITIONS_FOR_EACH_DEVICE * device_count)
    return dataclasses.replace(config, output_partition_count=max(1, wanted, len(make_plan(config, source))))


def choose_partitions(
    config: InferenceConfig, folder: EmbeddingsFolder, source: Source, tasks: Sequence[int] | None
) -> Sequence[Partition]:
    """Return the partitions of the plan that are asked for, or those that a revised folder has."""
    check_input(folder, source)
    if is_revised(folder) and isinstance(source, FilesSource):
        source = as_it_was(source, config, folder)
    plan = make_plan(config, source)
    check_folder(folder, describe_options(config, source, plan))
    if is_revised(folder):
        return folder.partitions()
    return plan if tasks is None else [plan[i] for i in tasks]


def revise(config: InferenceConfig, folder: EmbeddingsFolder, source: Source) -> RunSummary:
    """Update a folder that is there, or try again what failed."""
    with only_one(folder):
        finish_revision(folder)
        before = folder.partitions()
        revised = (update_folder if config.update else retry_failed)(config, folder, source)
    folder.remove_leftovers()
    partitions = folder.partitions()
    remove_wip(folder, partitions)
    summary = sum_up(folder, partitions, [partition for partition in partitions if partition not in before])
    check_outcome(config, summary.stats)
    return dataclasses.replace(summary, revised=revised)


def tidy_up(folder: EmbeddingsFolder, chosen: Sequence[Partition]) -> str:
    """Remove what a stopped run has half done; return the sentence that it ends with."""
    folder.remove_leftovers(own=True)
    remove_wip(folder, chosen)
    there = set(folder.names("metadata", ".parquet"))
    done = sum(folder.metadata_name(partition).rpartition("/")[2] in there for partition in chosen)
    smaller = "" if len(chosen) > 1 else " (a new run with a smaller --write_batch_size keeps more)"
    return f"stopped: {done} of {len(chosen)} partitions are done; give the same command again to go on{smaller}"


def check_apart(config: InferenceConfig, folder: EmbeddingsFolder) -> None:
    path = local_path(config.source.input_dataset)
    if path is not None and Folder(str(path)).root == folder.root and path.is_dir():  # a list is too long for is_dir
        raise ConfigError(f"{folder.url} is the input; give the embeddings a folder of their own")


def run_tasks(config: WorkerConfig) -> RunSummary:
    """Make the partitions of one task of a run that is shared out by hand."""
    return run_inference(config.run, config.tasks)


def sum_up(folder: EmbeddingsFolder, chosen: Sequence[Partition], made: Sequence[Partition]) -> RunSummary:
    parts = {partition.name: folder.read_json(folder.stats_name(partition)) for partition in chosen}
    now = add_up(parts[partition.name] for partition in made)
    return RunSummary(
        output_folder=folder.url,
        partition_count=len(chosen),
        already_done=len(chosen) - len(made),
        wall_seconds=now.end_time - now.start_time,
        stats=add_up(parts.values()),
        now=now,
    )


def check_outcome(config: InferenceConfig, stats: Stats) -> None:
    """A run that wrote no row, or left out more than is allowed, has failed."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in stats.reasons.most_common())
    if not stats.sample_count:
        raise SourceError(
            f"no sample of {config.source.input_dataset} could be embedded ({reasons or 'it holds none'})"
        )
    share = stats.skipped_count / (stats.sample_count + stats.skipped_count)
    if share > config.max_skipped:
        raise SourceError(
            f"{stats.skipped_count} samples were left out, a share of {share:.3f}, more than max_skipped "
            f"{config.max_skipped} ({reasons}); the rest is in {config.output_folder}"
        )
