"""The plan of a run: how its input is cut into partitions, and which of them are still to be made.

The cut is a pure function of options and input, so every worker gets the same one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.engines.open import check_model_name
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.attempts import new_run
from clip_retrieval.inference.config import InferenceConfig, check_tasks
from clip_retrieval.inference.manifest import describe_options
from clip_retrieval.inference.missing import ids_to_make
from clip_retrieval.inference.resume import as_it_was, check_folder, check_input, is_revised
from clip_retrieval.inference.saved_plan import check_plan, read_plan, restore_source, save_plan
from clip_retrieval.installed import need
from clip_retrieval.layout import EmbeddingsFolder, Partition, check_not_inside, read_manifest
from clip_retrieval.paths import local_path
from clip_retrieval.sources import open_source
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.packed import Mapped
from clip_retrieval.sources.protocol import Source
from clip_retrieval.storage import Folder

PARTITIONS_FOR_EACH_DEVICE = 4  # faster devices then make more partitions, and none waits long for the last one


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
    chosen: Sequence[Partition]  # the requested partitions; all existing ones if the folder was updated
    missing: Sequence[Partition]  # those of `chosen` that are not whole

    def to_json(self) -> dict[str, Any]:
        return {
            "output_folder": self.folder.url,
            "partition_count": len(self.partitions),
            "missing": len(self.missing),
            "units": len(self.source.units),
            "samples": self.estimate_samples(self.partitions),
        }


def open_plan(config: InferenceConfig, run: str | None = None) -> Plan:
    """Return the plan for a worker that is given its partitions: the saved one, else a new one.

    `run` is the id of the run that the worker is part of; None: a new one. Writes nothing. Raises ConfigError if the
    saved plan has other options, StorageError if it cannot be read.
    """
    saved = open_saved(config, run)
    if saved is not None:
        return saved
    source = open_source(config.source, config.output_folder)
    partitions = make_partitions(config, source)
    return Plan(
        config=config,
        source=source,
        folder=EmbeddingsFolder(config.output_folder, keeps=True),
        partitions=partitions,
        described=describe_options(config, source, partitions),
        run=run or new_run(),
    )


def open_saved(config: InferenceConfig, run: str | None = None) -> Plan | None:
    """Return the plan that was saved in the output folder, for the same options; None if there is none."""
    folder = EmbeddingsFolder(config.output_folder, keeps=True)
    saved = read_plan(folder)
    if saved is None:
        return None
    check_plan(saved, config, folder)
    source = restore_source(saved, config.source, folder)
    return Plan(
        config=dataclasses.replace(config, output_partition_count=saved.partition_count),
        source=source,
        folder=folder,
        partitions=Cut(len(source.units), saved.partition_count),
        described=saved.described,
        run=run or new_run(),
    )


def publish_plan(run: PlannedRun) -> None:
    """Write the plan into the output folder, for workers that are started on other machines."""
    save_plan(run.config, run.source, run.partitions, run.run)


def plan_run(
    config: InferenceConfig, folder: EmbeddingsFolder, source: Source, tasks: Sequence[int] | None = None
) -> PlannedRun:
    """Plan all partitions, or those of `tasks`; writes nothing.

    Raises ConfigError if the folder has embeddings of another input or of other options.
    """
    devices = list_devices(config.encoder)
    worker_count = config.slurm.worker_count if config.distribution_strategy == "slurm" else len(devices)
    config = settle_partition_count(config, folder, source, worker_count)
    has_plan = not is_revised(folder)
    partitions = make_partitions(config, source)
    described = describe_options(config, source, partitions)
    check_input(folder, source, described)
    if not has_plan and isinstance(source, FilesSource):
        described = describe_options(config, as_it_was(source, config, folder), partitions)
    check_folder(folder, described)
    plan = Plan(config=config, source=source, folder=folder, partitions=partitions, described=described)
    return choose(plan, devices, tasks) if has_plan else choose_nothing(plan, devices)


def choose(plan: Plan, devices: Sequence[str], tasks: Sequence[int] | None) -> PlannedRun:
    """Return what is to be done of a plan: all that is missing, or what is missing of `tasks`."""
    if tasks is not None:
        check_tasks(tasks, len(plan.partitions))
    ids = range(len(plan.partitions)) if tasks is None else tasks
    chosen = Mapped(ids, plan.partitions.__getitem__)
    missing = Mapped(ids_to_make(plan.folder, plan.partitions, ids), plan.partitions.__getitem__)
    return PlannedRun(**vars(plan), devices=devices, chosen=chosen, missing=missing)


def choose_nothing(plan: Plan, devices: Sequence[str]) -> PlannedRun:
    """Return a run with nothing to do, for a folder that was updated: its ledger says what its rows are."""
    return PlannedRun(**vars(plan), devices=devices, chosen=plan.folder.partitions(), missing=[])


class Cut(Sequence[Partition]):
    """Contiguous partitions of some units, whose sizes differ by at most one; computed on access."""

    def __init__(self, unit_count: int, partition_count: int) -> None:
        self.unit_count, self.length = unit_count, partition_count

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, place: int) -> Partition: ...
    @overload
    def __getitem__(self, place: slice) -> list[Partition]: ...
    def __getitem__(self, place: int | slice) -> Partition | list[Partition]:
        if isinstance(place, slice):
            return [self[i] for i in range(self.length)[place]]
        number = range(self.length)[place]
        start, stop = (self.unit_count * bound // self.length for bound in (number, number + 1))
        return Partition(number, self.length, start, stop)


def count_partitions(unit_count: int, samples_per_unit: int, samples_per_partition: int) -> int:
    """Return how many partitions hold about `samples_per_partition` samples each, at least one."""
    return max(1, -(-unit_count * samples_per_unit // samples_per_partition))


def make_partitions(config: InferenceConfig, source: Source) -> Cut:
    """Return the partitions of a run: a function of the options and the input alone."""
    per_unit = source.samples_per_unit or config.wds_number_file_per_input_file
    count = config.output_partition_count or count_partitions(len(source.units), per_unit, config.write_batch_size)
    return Cut(len(source.units), count)


def settle_partition_count(
    config: InferenceConfig, folder: EmbeddingsFolder, source: Source, worker_count: int
) -> InferenceConfig:
    """Keep the partition count of a started run; a new run on several devices gets some for each of them."""
    if config.output_partition_count is not None:
        return config
    manifest = read_manifest(folder) if folder.has_partitions() else None
    if manifest is not None:
        return dataclasses.replace(config, output_partition_count=manifest["partition_count"])
    if worker_count == 1:
        return config
    wanted = min(len(source.units), PARTITIONS_FOR_EACH_DEVICE * worker_count)
    return dataclasses.replace(config, output_partition_count=max(1, wanted, len(make_partitions(config, source))))


def open_output(config: InferenceConfig) -> EmbeddingsFolder:
    """Return the folder of a run; raises ConfigError if it is the input, EncoderError if the model cannot be opened."""
    check_model_name(config.encoder.clip_model)
    if config.telemetry.enable_wandb:  # before there is a folder
        need("wandb", "--enable_wandb", ConfigError, extra="wandb")
    folder = EmbeddingsFolder(config.output_folder, keeps=True)
    path = local_path(config.source.input_dataset)
    if path is not None and os.path.isdir(path) and Folder(str(path)).place == folder.place:  # noqa: PTH112 -- or a list
        raise ConfigError(f"{folder.url} is the input; give the embeddings a folder of their own")
    check_not_inside(folder, ConfigError)
    return folder
