"""`--update`: an embeddings folder follows its input folder, and embeds only what is new or changed.

First one revision empties the rows of removed files and renames those of moved files. Then each `write_batch_size` new
samples are appended as a partition, a revision each: a stopped update goes on from there.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import describe_input, describe_options
from clip_retrieval.inference.output.failures import describe_failure, read_failures
from clip_retrieval.inference.output.ledger import as_name
from clip_retrieval.inference.resume import as_it_was, check_ledgers, check_same_run, records_of
from clip_retrieval.inference.revisions.changes import Change, Changes, find_changes
from clip_retrieval.inference.revisions.damage import Damage, find_damage
from clip_retrieval.inference.revisions.edit import Edit
from clip_retrieval.inference.revisions.revised import Revised, Revision
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.worker.equipment import Equipment, reopen_equipment
from clip_retrieval.inference.worker.partition import make_partition
from clip_retrieval.layout import (
    EMBEDDING_FOLDERS,
    FAILURES_FOLDER,
    LEDGER_FOLDER,
    MANIFEST,
    REVISED,
    STATS_FOLDER,
    EmbeddingsFolder,
    Partition,
    next_partition,
    read_manifest,
)
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import FileState, Part, Sample
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean, counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PickedFiles:
    """Some samples of a folder as a separate input."""

    folder: FilesSource
    units: Sequence[str]

    @property
    def config(self) -> SourceConfig:
        return self.folder.config

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        for key in self.units[start:stop]:
            yield self.folder.sample(key)

    @property
    def samples_per_unit(self) -> int:
        return 1

    def estimate_total(self) -> int:
        return len(self.units)

    def files_of(self, key: str) -> Mapping[Part, FileState]:
        return self.folder.files_of(key)


def update_folder(config: InferenceConfig, folder: EmbeddingsFolder, source: Source) -> Revised:
    """Bring a folder that has partitions up to date with its input."""
    if not isinstance(source, FilesSource):
        raise ConfigError(
            f"update follows a folder of files (input_format files or video); embed what is new of "
            f"{config.source.input_dataset} into a separate folder"
        )
    check_listable(source.folder)
    manifest = read_manifest(folder) or {}
    source = as_it_was(source, config, folder)
    described = describe_options(config, source, [])
    check_same_run(folder, manifest | {REVISED: True}, described | {"input": manifest.get("input")})
    partitions = folder.partitions()
    check_ledgers(folder, partitions)
    tell_of_missing(folder, partitions)
    damage = find_damage(folder, partitions)
    changes = find_changes(records_of(folder, partitions), source, {one.partition for one in damage})
    chunks = [
        changes.new[start : start + config.write_batch_size]
        for start in range(0, len(changes.new), config.write_batch_size)
    ]
    described = manifest | {
        "partition_count": len(partitions) + len(chunks),
        "input": describe_input(source),
        "options": manifest["options"] | {"source": manifest["options"]["source"] | chosen_places(described)},
    }
    with ExitStack() as stack:  # another model is refused before anything changes
        equipment = stack.enter_context(reopen_equipment(config, source, folder)) if chunks else None
        tell_of_damage(damage, changes)
        change_partitions(folder, changes, source, described, damage)
        made: list[Stats] = []
        if equipment is not None:
            live = Live(len(chunks))
            stack.enter_context(watching(config, live))
            made = append_partitions(equipment, folder, [PickedFiles(source, chunk) for chunk in chunks], live)
    return Revised(
        kept=changes.count_kept(),
        renamed=changes.count_renamed(),
        removed=changes.count_removed(),
        embedded=sum(stats.sample_count for stats in made),
        failing=sum(stats.skipped_count for stats in made),
        stats=made,
    )


def chosen_places(described: dict[str, Any]) -> dict[str, Any]:
    """Return the options that choose frames of videos and pages of PDFs, which an update may change."""
    return {name: described["options"]["source"][name] for name in ("videos", "enable_pages")}


def tell_of_missing(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> None:
    """Warn of partitions that were finished, as their stats show, and whose metadata is gone, before others."""
    there = {folder.stats_name(partition).rpartition("/")[2] for partition in partitions}
    for name in folder.names(STATS_FOLDER, ".json"):
        stem = name.removesuffix(".json")
        if name not in there and stem.isdecimal() and partitions and int(stem) < partitions[-1].id:
            logger.warning(
                "%s is missing: its samples become new rows at the end, and the rows after it get smaller ids; to keep "
                "all ids, stop, and run the same command without --update; else build the index again",
                folder.path(folder.metadata_name(dataclasses.replace(partitions[0], id=int(stem)))),
            )


def tell_of_damage(damage: Sequence[Damage], changes: Changes) -> None:
    for one in damage:
        lost = sum(change.partition == one.partition and not change.is_left_out for change in changes.changes)
        advice = (
            f"what the input still has of its {counted(lost, 'row')} is embedded again, as new rows"
            if lost
            else "it is written again, without embeddings: the pictures and captions of its rows were gone before"
        )
        logger.warning("%s; %s", one.what, advice)


def append_partitions(
    equipment: Equipment, folder: EmbeddingsFolder, sources: Sequence[PickedFiles], live: Live
) -> list[Stats]:
    """Make a partition of each source after the folder's last one, a revision each."""
    report, last, made = live.teller(), folder.partitions()[-1], []
    report.estimate_total = lambda: sum(len(source.units) for source in sources)
    for source in sources:
        last = next_partition(last, len(source.units))
        revision = Revision(folder.url, keeps=True)
        made.append(make_partition(equipment, source, revision, last, report))
        revision.commit()
    return made


def check_listable(folder: Folder) -> None:
    """Raise SourceError if a folder cannot be listed: its files are not gone."""

    def refuse(error: OSError) -> None:
        raise SourceError(
            f"{error.filename} cannot be listed ({error.strerror}): an update would take its files for deleted; make "
            "it readable, or remove it"
        )

    if folder.is_local:
        for _ in os.walk(folder.root, onerror=refuse):
            continue


def change_partitions(
    folder: EmbeddingsFolder, changes: Changes, source: FilesSource, manifest: dict[str, Any], damage: Sequence[Damage]
) -> None:
    """Empty, rename and forget in one revision, which also writes the manifest if anything is to be done."""
    revision = Revision(folder.url)
    partitions = folder.partitions()
    edits = {partition: Edit(partition=partition) for partition in partitions}
    for change in changes.changes:
        add_change(edits[change.partition], change, source)
    for one in damage:
        edits[one.partition].damage[one.modality] = one
    refresh_ignored(edits[partitions[0]], revision, source)
    for edit in edits.values():
        if edit != Edit(partition=edit.partition):
            edit.apply(revision)
    remove_unfinished(revision, partitions)
    manifest = manifest | {REVISED: True}
    before = read_manifest(folder) or {}
    if {**before, REVISED: True} != manifest or revision.writes or revision.removals:
        revision.write_json(MANIFEST, manifest)
        revision.commit()


def add_change(edit: Edit, change: Change, source: FilesSource) -> None:
    record = edit.records[change.place] = change.new_record()
    name, row = ("", clean(as_name(change.record["key"]))), change.record["row"]
    if change.key is None and row is not None:
        edit.deleted.add(row)
    if change.is_left_out:
        edit.skipped_count -= 1
    if change.key is None or change.is_renamed:
        edit.renamed[name] = change.key
    if change.is_renamed and record is not None and change.key is not None:
        edit.image_paths[row] = clean(source.url(change.key))


def refresh_ignored(edit: Edit, revision: Revision, source: FilesSource) -> None:
    """Let the first partition name the files that are not samples now, if these changed."""
    then = [failure for failure in read_failures(revision, edit.partition) if failure["part"] == "other"]
    if then != [describe_failure(failure) for failure in source.ignored]:
        edit.without_other, edit.failures = True, [*source.ignored]


def remove_unfinished(revision: Revision, partitions: Sequence[Partition]) -> None:
    """Remove what a stopped run left of unfinished partitions: their samples count as new."""
    whole = {partition.name for partition in partitions}
    embeddings = ((subfolder, ".npy") for subfolder in EMBEDDING_FOLDERS.values())
    for subfolder, suffix in (*embeddings, (FAILURES_FOLDER, ".parquet"), (LEDGER_FOLDER, ".parquet")):
        for name in revision.names(subfolder, suffix):
            if name.removeprefix(f"{subfolder}_").removesuffix(suffix) not in whole:
                revision.remove(f"{subfolder}/{name}")
    kept = {revision.stats_name(partition) for partition in partitions}
    for name in revision.names(STATS_FOLDER, ".json"):
        if f"{STATS_FOLDER}/{name}" not in kept:
            revision.remove(f"{STATS_FOLDER}/{name}")
