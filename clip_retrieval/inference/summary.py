"""The summary of a run, and whether it counts as failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.errors import SourceError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.revisions.revised import Revised
from clip_retrieval.inference.small_files import read_all
from clip_retrieval.inference.telemetry.diagnosis import Diagnosis, Machine, Shares, diagnose, shares_of
from clip_retrieval.inference.telemetry.stats import Stats, Sums
from clip_retrieval.json_files import parse_json
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.process.resources import count_cores


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did: its folder, partitions done before and now, the sums over all of them and over those made now."""

    output_folder: str
    partition_count: int
    already_done: int
    wall_seconds: float
    stats: Stats
    now: Stats
    revised: Revised | None = None  # counts of an update or retry_failed

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


def sum_up(folder: EmbeddingsFolder, chosen: Sequence[Partition], made: Sequence[Partition]) -> RunSummary:
    """Add up the stats of all chosen partitions, and of those that were made now."""
    names, made_now = [folder.stats_name(partition) for partition in chosen], {partition.name for partition in made}
    everything, some = Sums(), Sums()
    for partition, name, data in zip(chosen, names, read_all(folder, names), strict=True):
        part = parse_json(data, dict[str, Any], folder.path(name))
        everything.add(part)
        if partition.name in made_now:
            some.add(part)
    now = some.total
    return RunSummary(
        output_folder=folder.url,
        partition_count=len(chosen),
        already_done=len(chosen) - len(made),
        wall_seconds=now.end_time - now.start_time,
        stats=everything.total,
        now=now,
    )


def check_outcome(config: InferenceConfig, stats: Stats) -> None:
    """Raise SourceError if a run wrote no row, or left out more than max_skipped."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in stats.reasons.most_common())
    if not stats.sample_count:
        raise SourceError(
            f"no sample of {config.source.input_dataset} could be embedded "
            + (f"({reasons}); {config.output_folder}/failures says why" if reasons else "(it holds none)")
        )
    share = stats.skipped_count / (stats.sample_count + stats.skipped_count)
    if share > config.max_skipped:
        raise SourceError(
            f"{stats.skipped_count} samples were left out, a share of {share:.3f}, more than max_skipped "
            f"{config.max_skipped} ({reasons}); the rest is in {config.output_folder}"
        )
