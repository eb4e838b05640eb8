"""`--retry_failed`: embeds again only the samples that failures/ names, wherever the input is a file, tar or table.

A row that lacked a part gets it in place; a sample that was left out becomes a new row at the end. Everything is
encoded into a folder of its own first, under numbers for keys, and then moved by one revision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import REVISED, describe_options
from clip_retrieval.inference.resume import as_it_was, check_ledgers, check_same_run
from clip_retrieval.inference.revisions.damage import find_damage, refuse_damage
from clip_retrieval.inference.revisions.failed_samples import Failed, Identity, Target, find_failed
from clip_retrieval.inference.revisions.refill import read_outcomes, refill
from clip_retrieval.inference.revisions.revised import Revised, Revision
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.stats import add_up
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.worker.equipment import reopen_equipment
from clip_retrieval.inference.worker.partition import make_partition
from clip_retrieval.layout import MANIFEST, EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.protocol import Selective, Source
from clip_retrieval.sources.types import Failure, FileState, Inventory, Part, Sample
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean

SCRATCH_PARTITION = Partition(0, 1, 0, 1)


@dataclass(kw_only=True)
class PickedSamples:
    """The samples of a source that failed before, read again; their keys are their numbers in `targets`."""

    source: Source
    failed: Failed
    targets: list[Target] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # keys in the source
    damage: dict[str, list[Failure]] = field(default_factory=dict)  # shard that was read -> what is wrong with it now
    units: Sequence[str] = ("picked",)

    @property
    def config(self) -> SourceConfig:
        return self.source.config

    @property
    def samples_per_unit(self) -> None:
        return None

    def estimate_total(self) -> int:
        return self.failed.count()

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        del start, stop  # it is one unit
        for item in self.read_again():
            if isinstance(item, Failure):
                if item.part == "shard":
                    self.damage.setdefault(clean(item.shard), []).append(item)
                continue
            target = self.failed.target(identity(item))
            if target is not None:
                self.targets.append(target)
                self.keys.append(item.key)
                yield dataclasses.replace(item, key=str(len(self.targets) - 1))

    def read_again(self) -> Iterator[Sample | Failure]:
        """Yield the failed samples, or else whatever the units hold that have failed ones."""
        if isinstance(self.source, Selective):
            yield from self.source.read_only(self.failed.names())
            return
        shards = self.failed.shards()
        for number, unit in enumerate(self.source.units):
            if clean(unit) in shards:
                self.damage[clean(unit)] = []
                yield from self.source.read(number, number + 1)

    def files_of(self, key: str) -> Mapping[Part, FileState]:
        return self.source.files_of(self.keys[int(key)]) if isinstance(self.source, Inventory) else {}


def identity(sample: Sample) -> Identity:
    origin = sample.origin
    shard, offset = (origin.shard, origin.offset) if origin else ("", None)
    return Identity(clean(shard), clean(sample.key), offset)


def retry_failed(config: InferenceConfig, folder: EmbeddingsFolder, source: Source) -> Revised:
    """Try the failed samples of a finished folder again."""
    manifest = read_manifest(folder) or {}
    if isinstance(source, FilesSource):
        source = as_it_was(source, config, folder)
    described = describe_options(config, source, [])
    check_same_run(folder, manifest | {REVISED: True}, described | {"input": manifest.get("input")})
    partitions = folder.partitions()
    if len(partitions) < manifest.get("partition_count", 0):
        raise ConfigError(
            f"{folder.url} has {len(partitions)} of {manifest['partition_count']} partitions; finish it first, with "
            f"{'--update' if manifest.get(REVISED) else 'the same command without --retry_failed'}"
        )
    check_ledgers(folder, partitions)
    refuse_damage(folder, find_damage(folder, partitions), is_folder_of_files=isinstance(source, FilesSource))
    failed = find_failed(folder, partitions)
    stats = add_up(folder.read_json(folder.stats_name(partition)) for partition in partitions)
    row_count = stats.sample_count - stats.deleted_count
    if not failed:
        return Revised(kept=row_count)
    live = Live(1)
    with (
        Folder(folder.url).staging() as scratch,  # it keeps nothing of a retry that fails: that is one revision
        reopen_equipment(config, source, folder) as equipment,
        watching(config, live),
    ):
        picked, report = PickedSamples(source=source, failed=failed), live.teller()
        report.estimate_total = picked.estimate_total
        made = EmbeddingsFolder(str(scratch / "made"))
        Path(made.root).mkdir()
        make_partition(equipment, picked, made, SCRATCH_PARTITION, report)
        outcomes = read_outcomes(made, SCRATCH_PARTITION, picked.targets, picked.keys)
        revision = Revision(folder.url)
        result = refill(revision, made, outcomes, failed, picked.damage)
        if result.changes_rows:
            count = len(partitions) + (result.appended is not None)
            revision.write_json(MANIFEST, manifest | {REVISED: True, "partition_count": count})
        revision.commit()
    return Revised(kept=row_count - result.filled_count, embedded=result.embedded_count, failing=result.failing_count)
