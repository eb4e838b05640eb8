"""`--retry_failed`: embeds again only the samples that failures/ names, if the input is files, tars or tables.

A row that lacked a part gets it in place; a sample that was left out becomes a new row at the end. Everything is
encoded into a separate folder first, with numbers as keys, and then moved by one revision.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import describe_options
from clip_retrieval.inference.resume import as_it_was, check_ledgers, check_same_run
from clip_retrieval.inference.revisions.damage import find_damage, refuse_damage
from clip_retrieval.inference.revisions.failed_samples import Failed, Identity, Target, find_failed
from clip_retrieval.inference.revisions.refill import read_outcomes, refill
from clip_retrieval.inference.revisions.revised import Revised, Revision
from clip_retrieval.inference.revisions.same_files import (
    Pictures,
    find_replaced,
    pictures_of,
    tell_of_unlisted,
)
from clip_retrieval.inference.revisions.same_tables import find_replaced_tables
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.stats import add_up
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.worker.equipment import reopen_equipment
from clip_retrieval.inference.worker.partition import make_partition
from clip_retrieval.layout import MANIFEST, REVISED, EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.sources.archive import ArchiveSource
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.protocol import Selective, Sharded, Source
from clip_retrieval.sources.types import Failure, FileState, Inventory, Part, Sample
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean

logger = logging.getLogger(__name__)

SCRATCH_PARTITION = Partition(0, 1, 0, 1)


@dataclass(kw_only=True)
class PickedSamples:
    """The samples of a source that failed earlier, read again; their keys are their numbers in `targets`."""

    source: Source
    failed: Failed
    targets: list[Target] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # keys in the source
    replaced_tables: Mapping[str, str] = field(default_factory=dict)  # table -> a sentence; nothing of it is tried
    shards: dict[str, Pictures] = field(default_factory=dict)  # those that were read to their end
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
                if item.part == "shard" and clean(item.shard) in self.shards:
                    self.shards[clean(item.shard)].damage.append(item)
                continue
            self.note(item)
            target = self.failed.target(identity(item), None if item.image_path is None else clean(item.image_path))
            if target is not None:
                self.targets.append(target)
                self.keys.append(item.key)
                yield dataclasses.replace(item, key=str(len(self.targets) - 1))

    def read_again(self) -> Iterator[Sample | Failure]:
        """Yield the failed samples, and all samples of shards that were damaged or cannot be read in part."""
        shards = self.failed.shards()
        if isinstance(self.source, Selective):
            shards = set(self.failed.gaps)
            others = shards.union(self.replaced_tables)
            yield from self.source.read_only({name for name in self.failed.names() if name[0] not in others})
        if isinstance(self.source, Sharded):
            for url in self.source.shards:
                if clean(url) in shards:
                    self.shards[clean(url)] = Pictures()
                    yield from self.source.read_shard(url)

    def note(self, sample: Sample) -> None:
        shard = "" if sample.origin is None else clean(sample.origin.shard)
        if shard in self.shards and sample.image_path is not None:
            self.shards[shard].add(sample.image_path, sample.origin.size if sample.origin else None)

    def find_replaced(self) -> dict[str, str]:
        """Return, by shard, a sentence on files that are no longer the ones whose rows are there."""
        shards = self.shards
        if isinstance(self.source, ArchiveSource):
            wanted, archives = self.failed.shards(), self.source.archives
            shards = {
                clean(url): pictures_of(archive, self.source)
                for url, archive in archives.items()
                if clean(url) in wanted
            }
        return {**self.replaced_tables, **find_replaced(self.failed, shards)}

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
    failed = find_failed(folder, partitions)
    refuse_damage(folder, find_damage(folder, partitions, failed.partitions()))
    tell_of_unlisted(failed)
    stats = add_up(folder.read_json(folder.stats_name(partition)) for partition in partitions)
    row_count = stats.sample_count - stats.deleted_count
    if not failed:
        return Revised(kept=row_count)
    live = Live(1)
    with (
        Folder(folder.url).staging() as scratch,  # nothing is kept of a retry that fails, since it is one revision
        reopen_equipment(config, source, folder) as equipment,
        watching(config, live),
    ):
        replaced_tables = find_replaced_tables(folder, partitions, source, failed)
        picked = PickedSamples(source=source, failed=failed, replaced_tables=replaced_tables)
        report = live.teller()
        report.estimate_total = picked.estimate_total
        made = EmbeddingsFolder(str(scratch / "made"))
        Path(made.root).mkdir()
        make_partition(equipment, picked, made, SCRATCH_PARTITION, report)
        outcomes = read_outcomes(made, SCRATCH_PARTITION, picked.targets, picked.keys)
        replaced = picked.find_replaced()
        for sentence in replaced.values():
            logger.warning("%s", sentence)
        damage = {shard: pictures.damage for shard, pictures in picked.shards.items() if shard not in replaced}
        revision = Revision(folder.url)
        result = refill(revision, made, [one for one in outcomes if one.target.name[0] not in replaced], failed, damage)
        if result.changes_rows:
            count = len(partitions) + (result.appended is not None)
            revision.write_json(MANIFEST, manifest | {REVISED: True, "partition_count": count})
        revision.commit()
    return Revised(kept=row_count - result.filled_count, embedded=result.embedded_count, failing=result.failing_count)
