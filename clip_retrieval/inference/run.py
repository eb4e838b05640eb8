"""The whole of `inference`: plan, share out among workers, sum up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.blobs import local_path
from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig
from clip_retrieval.inference.diagnosis import Diagnosis, Machine, Shares, diagnose, shares_of
from clip_retrieval.inference.distributors.local import run_local
from clip_retrieval.inference.live import Live
from clip_retrieval.inference.run_manifest import check_folder, describe_options
from clip_retrieval.inference.sources import open_source
from clip_retrieval.inference.stats import Stats, add_up
from clip_retrieval.inference.telemetry import watching
from clip_retrieval.inference.wip import remove_wip
from clip_retrieval.inference.worker import make_plan, needs_work
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.options import build_config
from clip_retrieval.resources import count_cores
from clip_retrieval.storage import Folder, check_writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """What a run did: its folder, partitions done before and now, the sums over all of them and over those made now."""

    output_folder: str
    partition_count: int
    already_done: int
    wall_seconds: float
    stats: Stats
    now: Stats

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
    source = open_source(config.source, config.output_folder)
    plan = make_plan(config, source)
    check_writable(folder)
    check_folder(folder, describe_options(config, source, plan))
    chosen = [plan[i] for i in tasks] if tasks is not None else plan
    missing = [partition for partition in chosen if needs_work(folder, partition)]
    if missing:
        live = Live(len(missing))
        with watching(config, live):
            devices = list_devices(config.encoder)
            run_local(config, source, [partition.id for partition in missing], devices, live)
    folder.remove_leftovers()
    remove_wip(folder, chosen)
    summary = sum_up(folder, chosen, missing)
    check_outcome(config, summary.stats)
    return summary


def check_apart(config: InferenceConfig, folder: EmbeddingsFolder) -> None:
    path = local_path(config.source.input_dataset)
    if path is not None and path.is_dir() and Folder(str(path)).root == folder.root:
        raise ConfigError(f"{folder.url} is the input; give the embeddings a folder of their own")


def run_tasks(config: WorkerConfig) -> RunSummary:
    """Make the partitions of one task of a run that is shared out by hand."""
    return run_inference(config.run, config.tasks)


def sum_up(folder: EmbeddingsFolder, chosen: Sequence[Partition], made: Sequence[Partition]) -> RunSummary:
    parts = {partition.id: folder.read_json(folder.stats_name(partition)) for partition in chosen}
    now = add_up(parts[partition.id] for partition in made)
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
