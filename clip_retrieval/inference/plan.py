"""The plan of a run: how its input is cut into partitions, and which of them are still to be made.

The cut is a pure function of options and input, so every worker comes to the same one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.engines.open import check_model_name
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.attempts import new_run
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import describe_options
from clip_retrieval.inference.resume import as_it_was, check_folder, check_input, is_revised
from clip_retrieval.layout import EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.paths import local_path
from clip_retrieval.sources import open_source
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.protocol import Source
from clip_retrieval.storage import Folder

PARTITIONS_FOR_EACH_DEVICE = 4  # faster devices then make more partitions, and none waits long for the last one

# Reasons that a later run may not meet: a missing tar, a store that did not answer, a plug-in, `git lfs pull`.
PASSING_REASONS = (
    "shard:missing", "shard:unreadable", "image:unreadable", "image:needs_plugin", "text:unreadable",
    "metadata:unreadable", "shard:git_lfs_pointer", "image:git_lfs_pointer", "text:git_lfs_pointer",
    "metadata:git_lfs_pointer",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Input, output and partitions of a run; every worker derives the same ones from the options."""

    config: InferenceConfig
    source: Source
    folder: EmbeddingsFolder
    partitions: Sequence[Partition]
    described: dict[str, Any]  # what the manifest says of options, input and cut
    run: str = field(default_factory=new_run)  # id of the run that attempts belong to

    def estimate_samples(self, chosen: Iterable[Partition]) -> int | None:
        """Return how many samples these partitions hold, by their share of the input; None while that is unknown."""
        total, share = self.source.estimate_total(), self.share_of(chosen)
        return None if total is None else round(total * share)

    def share_of(self, chosen: Iterable[Partition]) -> float:
        return sum(partition.stop - partition.start for partition in chosen) / max(1, len(self.source.units))


@dataclass(frozen=True, kw_only=True)
class PlannedRun(Plan):
    """What a run is to do: made once, then taken by the run, by the dry run and by every distributor."""

    devices: Sequence[str]  # devices of this machine; distributors on other machines need not use them
    chosen: Sequence[Partition]  # partitions that were asked for; all that there are, where the folder was updated
    missing: Sequence[Partition]  # those of `chosen` that are not whole


def open_plan(config: InferenceConfig, run: str | None = None) -> Plan:
    """Return the plan for a worker that is given its partitions; reads the input, writes nothing.

    `run` is the id of the run that the worker is part of; None: one of its own.
    """
    source = open_source(config.source, config.output_folder)
    partitions = make_partitions(config, source)
    return Plan(
        config=config,
        source=source,
        folder=EmbeddingsFolder(config.output_folder),
        partitions=partitions,
        described=describe_options(config, source, partitions),
        run=run or new_run(),
    )


def plan_run(
    config: InferenceConfig, folder: EmbeddingsFolder, source: Source, tasks: Sequence[int] | None = None
) -> PlannedRun:
    """Plan all partitions, or those of `tasks`; writes nothing.

    Raises ConfigError where the folder has embeddings of another input or of other options.
    """
    devices = list_devices(config.encoder)
    worker_count = config.slurm.worker_count if config.distribution_strategy == "slurm" else len(devices)
    config = settle_partition_count(config, folder, source, worker_count)
    check_input(folder, source)
    has_plan = not is_revised(folder)
    planned = source if has_plan or not isinstance(source, FilesSource) else as_it_was(source, config, folder)
    partitions = make_partitions(config, planned)
    described = describe_options(config, planned, partitions)
    check_folder(folder, described)
    chosen = partitions if tasks is None else [partitions[i] for i in tasks]
    return PlannedRun(
        config=config,
        source=source,
        folder=folder,
        partitions=partitions,
        described=described,
        devices=devices,
        chosen=chosen if has_plan else folder.partitions(),
        missing=[partition for partition in chosen if needs_work(folder, partition)] if has_plan else [],
    )


def plan_partitions(unit_count: int, partition_count: int) -> list[Partition]:
    """Cut `unit_count` units into contiguous partitions whose sizes differ by at most one."""
    bounds = [unit_count * i // partition_count for i in range(partition_count + 1)]
    return [Partition(i, partition_count, bounds[i], bounds[i + 1]) for i in range(partition_count)]


def count_partitions(unit_count: int, samples_per_unit: int, samples_per_partition: int) -> int:
    """Return how many partitions hold about `samples_per_partition` samples each, at least one."""
    return max(1, -(-unit_count * samples_per_unit // samples_per_partition))


def make_partitions(config: InferenceConfig, source: Source) -> list[Partition]:
    """Return the partitions of a run: a function of the options and the input alone."""
    per_unit = source.samples_per_unit or config.wds_number_file_per_input_file
    count = config.output_partition_count or count_partitions(len(source.units), per_unit, config.write_batch_size)
    return plan_partitions(len(source.units), count)


def needs_work(folder: EmbeddingsFolder, partition: Partition, run: str = "") -> bool:
    """Say whether to make a partition: it is missing, or failed before this run for a reason that may have passed."""
    if not folder.is_done(partition):
        return True
    if partition.start == partition.stop:
        return False  # more partitions were asked for than there are samples
    stats = folder.read_json(folder.stats_name(partition))
    if run and stats.get("run") == run:
        return False
    return not stats["sample_count"] or any(reason in stats["reasons"] for reason in PASSING_REASONS)


def settle_partition_count(
    config: InferenceConfig, folder: EmbeddingsFolder, source: Source, worker_count: int
) -> InferenceConfig:
    """Keep the partition count of a started run; a new run on several devices gets some for each of them."""
    if config.output_partition_count is not None:
        return config
    manifest = read_manifest(folder) if folder.partitions() else None
    if manifest is not None:
        return dataclasses.replace(config, output_partition_count=manifest["partition_count"])
    if worker_count == 1:
        return config
    wanted = min(len(source.units), PARTITIONS_FOR_EACH_DEVICE * worker_count)
    return dataclasses.replace(config, output_partition_count=max(1, wanted, len(make_partitions(config, source))))


def open_output(config: InferenceConfig) -> EmbeddingsFolder:
    """Return the folder of a run; raises ConfigError if it is the input, EncoderError if the model cannot be opened."""
    check_model_name(config.encoder.clip_model)
    folder = EmbeddingsFolder(config.output_folder)
    path = local_path(config.source.input_dataset)
    if path is not None and os.path.isdir(path) and Folder(str(path)).place == folder.place:  # noqa: PTH112 -- or a list
        raise ConfigError(f"{folder.url} is the input; give the embeddings a folder of their own")
    return folder
