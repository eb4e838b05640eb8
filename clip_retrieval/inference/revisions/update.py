"""`--update`: an embeddings folder follows its input folder, and embeds only what is new or changed.

First one revision empties the rows of what is gone and renames what has moved. Then each `write_batch_size` new
samples are appended as a partition, a revision each: an update that is stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import REVISED, check_same_run, compare, describe_input, describe_options
from clip_retrieval.inference.output.ledger import Record, as_name, read_ledger
from clip_retrieval.inference.revisions.changes import Change, Changes, find_changes
from clip_retrieval.inference.revisions.edit import Edit, describe_failure, read_groups
from clip_retrieval.inference.revisions.revised import Revised, Revision
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.worker.remake import open_workshop
from clip_retrieval.layout import MANIFEST, EmbeddingsFolder, Partition, next_partition, read_manifest
from clip_retrieval.options import to_json
from clip_retrieval.sources import Source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.types import FileState, Part, Sample
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean


@dataclass(frozen=True)
class PickedFiles:
    """Some samples of a folder as an input of their own."""

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
            f"update follows a folder of files (input_format files); embed what is new of "
            f"{config.source.input_dataset} into a folder of its own"
        )
    check_listable(source.folder)
    manifest = read_manifest(folder) or {}
    source = as_it_was(source, config, folder)
    described = describe_options(config, source, [])
    check_same_run(folder, manifest | {REVISED: True}, described | {"input": manifest.get("input")})
    partitions = folder.partitions()
    check_ledgers(folder, partitions)
    changes = find_changes(records_of(folder, partitions), source)
    chunks = [
        changes.new[start : start + config.write_batch_size]
        for start in range(0, len(changes.new), config.write_batch_size)
    ]
    described = manifest | {"partition_count": len(partitions) + len(chunks), "input": describe_input(source)}
    made: list[Stats] = []
    with open_workshop(config, source, folder, len(chunks)) as workshop:
        change_partitions(folder, changes, source, described)
        last = partitions[-1]
        for chunk in chunks:
            last = next_partition(last, len(chunk))
            revision = Revision(folder.url)
            made.append(workshop.run(PickedFiles(source, chunk), revision, last))
            revision.commit()
    return Revised(
        kept=changes.count_kept(),
        renamed=changes.count_renamed(),
        removed=changes.count_removed(),
        embedded=sum(stats.sample_count for stats in made),
        failing=sum(stats.skipped_count for stats in made),
        stats=made,
    )


def as_it_was(source: FilesSource, config: InferenceConfig, folder: EmbeddingsFolder) -> FilesSource:
    """Return the source with the parts that the folder was made with, though the input may have lost them all.

    Raises ConfigError where the input has a part by now that it had not.
    """
    then = (read_manifest(folder) or {}).get("options", {}).get("source", {})
    for name, word, is_on in (
        ("enable_image", "pictures", source.config.enable_image),
        ("enable_text", "captions", source.config.enable_text),
    ):
        if is_on and then.get(name) is False:
            raise ConfigError(
                f"{source.folder.url} holds {word} now, and {folder.url} was made without; add --{name} False to go on "
                "without them, or use a new folder"
            )
    parts = dataclasses.replace(
        source.config,
        enable_image=config.source.enable_image and then.get("enable_image", True),
        enable_text=config.source.enable_text and then.get("enable_text", True),
    )
    return dataclasses.replace(source, config=parts)


def check_input(folder: EmbeddingsFolder, source: Source) -> None:
    """Raise ConfigError, with numbers, where a folder of files is no longer the one that was embedded."""
    manifest = read_manifest(folder) or {}
    partitions = folder.partitions() if manifest else []
    if len(partitions) < manifest.get("partition_count", 0) and manifest.get(REVISED):
        raise ConfigError(f"an update of {folder.url} was stopped; run the same command with --update to finish it")
    if not partitions or manifest.get("input") == describe_input(source) or not isinstance(source, FilesSource):
        return
    if len(partitions) < manifest["partition_count"] or not folder.names("ledger", ".parquet"):
        return
    others = dict.fromkeys(compare(manifest["options"].get("source"), to_json(source.config)))
    if others:  # another input is no change of this one
        raise ConfigError(
            f"{folder.url} holds a run with other options ({'; '.join(others)}); use a new folder, or the old options"
        )
    changes = count_changes(records_of(folder, partitions), source)
    raise ConfigError(
        f"the input has changed since {folder.url} was made: {changes}; run the same command with --update to embed "
        "the difference, or use a new folder"
    )


def count_changes(records: Iterable[tuple[Partition, int, Record]], source: FilesSource) -> str:
    is_known, gone = bytearray(len(source.units)), 0
    for *_, record in records:
        place = None if record["deleted"] else source.place_of(as_name(record["key"]))
        if place is not None:
            is_known[place] = True
        gone += place is None and not record["deleted"]
    return f"{is_known.count(0)} new, {gone} gone"


def check_listable(folder: Folder) -> None:
    """Raise SourceError where a folder cannot be listed: what is in it is not gone."""

    def refuse(error: OSError) -> None:
        raise SourceError(
            f"{error.filename} cannot be listed ({error.strerror}): an update would take its files for deleted; make "
            "it readable, or remove it"
        )

    if folder.is_local:
        for _ in os.walk(folder.root, onerror=refuse):
            continue


def check_ledgers(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> None:
    there = set(folder.names("ledger", ".parquet"))
    for name in map(folder.ledger_name, partitions):
        if name.rpartition("/")[2] not in there:
            raise ConfigError(
                f"{folder.path(name)} is missing: what the rows were made of is not known; use a new folder"
            )


def records_of(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> Iterator[tuple[Partition, int, Record]]:
    for partition in partitions:
        for place, record in enumerate(read_ledger(folder, folder.ledger_name(partition))):
            yield partition, place, record


def change_partitions(
    folder: EmbeddingsFolder, changes: Changes, source: FilesSource, manifest: dict[str, Any]
) -> None:
    """Empty, rename and forget in one revision, which writes the manifest, too, where anything is to be done."""
    revision = Revision(folder.url)
    partitions = folder.partitions()
    edits = {partition: Edit(partition) for partition in partitions}
    for change in changes.changes:
        add_change(edits[change.partition], change, source)
    refresh_ignored(edits[partitions[0]], revision, source)
    for edit in edits.values():
        if edit != Edit(edit.partition):
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
    """Let the first partition name the files that are no samples now, where these are others than before."""
    then = [
        failure
        for group in read_groups(revision, revision.failures_name(edit.partition))
        for failure in group
        if failure["part"] == "other"
    ]
    if then != [describe_failure(failure) for failure in source.ignored]:
        edit.without_other, edit.failures = True, [*source.ignored]


def remove_unfinished(revision: Revision, partitions: Sequence[Partition]) -> None:
    """Remove what a stopped run left of partitions that are not whole: their samples are new ones now."""
    whole = {partition.name for partition in partitions}
    for subfolder, suffix in (
        ("img_emb", ".npy"),
        ("text_emb", ".npy"),
        ("failures", ".parquet"),
        ("ledger", ".parquet"),
    ):
        for name in revision.names(subfolder, suffix):
            if name.removeprefix(f"{subfolder}_").removesuffix(suffix) not in whole:
                revision.remove(f"{subfolder}/{name}")
    kept = {revision.stats_name(partition) for partition in partitions}
    for name in revision.names("stats", ".json"):
        if f"stats/{name}" not in kept:
            revision.remove(f"stats/{name}")
