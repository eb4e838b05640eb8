"""Samples that were embedded again, back into their folder: parts filled in, new rows appended, failures updated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.embeddings.row_sums import CHECKSUMS
from clip_retrieval.inference.output.failures import describe_failure, read_failures, write_failures
from clip_retrieval.inference.output.ledger import LedgerWriter, Record, as_bytes, read_ledger
from clip_retrieval.inference.revisions.edit import Edit
from clip_retrieval.inference.revisions.failed_samples import Failed, Target
from clip_retrieval.inference.revisions.revised import Revision
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.layout import MODALITIES, EmbeddingsFolder, Modality, Partition, next_partition
from clip_retrieval.metadata import number_array, open_parquet, open_writer
from clip_retrieval.sources.types import SAMPLE_PARTS, Failure

Vectors = Mapping[Modality, NDArray[np.float16]]


@dataclass(kw_only=True)
class Outcome:
    """What became of one sample: its row among those made again, and what is wrong with it now."""

    target: Target
    key: str
    row: int | None = None
    record: Record | None = None
    failures: list[Failure] = field(default_factory=list)

    def parts(self) -> set[str]:
        return {failure.part for failure in self.failures}


@dataclass
class Refilled:
    """What a revision put into the folder."""

    appended: Partition | None = None
    filled_count: int = 0
    appended_count: int = 0
    failing_count: int = 0

    @property
    def embedded_count(self) -> int:
        return self.filled_count + self.appended_count

    @property
    def changes_rows(self) -> bool:
        return bool(self.embedded_count)


def read_outcomes(
    made: EmbeddingsFolder, partition: Partition, targets: Sequence[Target], keys: Sequence[str]
) -> list[Outcome]:
    """Return the outcomes in the order of the targets; keys are the numbers of those."""
    outcomes = [Outcome(target=target, key=key) for target, key in zip(targets, keys, strict=True)]
    for record in read_ledger(made, made.ledger_name(partition)):
        outcome = outcomes[int(record["key"])]
        outcome.row = record["row"]
        outcome.record = record | {"key": as_bytes(outcome.key)}
    for values in read_failures(made, partition):
        outcome = outcomes[int(values["key"])]
        shard, key = outcome.target.name
        outcome.failures.append(Failure(**(values | {"key": key, "shard": shard})))
    return outcomes


def refill(
    revision: Revision,
    made: EmbeddingsFolder,
    outcomes: Sequence[Outcome],
    failed: Failed,
    damage: Mapping[str, Sequence[Failure]],
) -> Refilled:
    """Publish into the revision what succeeded, and the present failures."""
    result = Refilled(failing_count=failed.count() - sum(outcome.target.is_known for outcome in outcomes))
    partitions = revision.partitions()
    edits = {partition: Edit(partition=partition) for partition in partitions}
    source = Partition(0, 1, 0, 1)
    vectors = open_vectors(made, source)
    metadata = None
    new: list[Outcome] = []
    for outcome in outcomes:
        target, edit = outcome.target, edits[outcome.target.partition]
        edit.renamed[target.name] = None  # its old failures are removed here, and added again below if they still hold
        if target.row is None and outcome.row is not None:
            new.append(outcome)
            edit.skipped_count -= (target.partition, target.name) in failed.failures
            if target.place is not None:
                edit.records[target.place] = None
        elif target.row is not None and is_better(outcome, failed):
            metadata = metadata if metadata is not None else read_metadata(made, source)
            fill(edit, outcome, vectors, metadata)
            edit.failures += outcome.failures
            result.filled_count += 1
        else:
            keep_failing(edit, outcome, failed)
            result.failing_count += 1
    close_gaps(edits, failed, damage)
    result.failing_count += sum(bool(damage.get(shard, True)) for shard in failed.gaps)
    if new:
        result.appended = next_partition(partitions[-1], len(new))
        result.appended_count = len(new)
        append(revision, result.appended, made, new)
    for edit in edits.values():
        if edit != Edit(partition=edit.partition):
            edit.apply(revision)
    return result


def is_better(outcome: Outcome, failed: Failed) -> bool:
    """Say whether a row has more than it had: fewer parts fail, and the files of the others are unchanged."""
    target = outcome.target
    before = {failure["part"] for failure in failed.failures[target.partition, target.name] if failure["row_kept"]}
    if outcome.row is None or not outcome.parts() < before:
        return False
    assert outcome.record is not None
    then = target.record or {}
    fine = [part for part in SAMPLE_PARTS if part not in before]
    return all(outcome.record[f"{part}_digest"] == then.get(f"{part}_digest") for part in fine)


def fill(edit: Edit, outcome: Outcome, vectors: Vectors, metadata: pa.Table) -> None:
    target = outcome.target
    assert target.row is not None
    assert target.place is not None
    assert outcome.row is not None
    assert outcome.record is not None
    for modality, rows in vectors.items():
        edit.vectors.setdefault(modality, {})[target.row] = rows[outcome.row]
    edit.filled[target.row] = metadata.slice(outcome.row, 1)
    edit.records[target.place] = outcome.record | {"row": target.row} if is_recorded(outcome) else None


def is_recorded(outcome: Outcome) -> bool:
    """Say whether the ledger has the sample: those of folders always, others while a part of them fails."""
    record = outcome.record or {}
    return bool(outcome.failures) or any(record.get(f"{part}_file") is not None for part in SAMPLE_PARTS)


def keep_failing(edit: Edit, outcome: Outcome, failed: Failed) -> None:
    """Record what is wrong now; for a row, only if that is about the same parts as before."""
    target = outcome.target
    before = failed.failures.get((target.partition, target.name), [])
    old = [failure for failure in before if failure["row_kept"]]
    if target.row is not None and (outcome.row is None or outcome.parts() != {failure["part"] for failure in old}):
        edit.failures += [Failure(**failure) for failure in old]
        return
    edit.failures += outcome.failures
    if target.row is None and not before:
        edit.skipped_count += 1


def close_gaps(edits: Mapping[Partition, Edit], failed: Failed, damage: Mapping[str, Sequence[Failure]]) -> None:
    """Remove or renew the failures of the shards that were read again."""
    for shard in failed.gaps.keys() & damage.keys():
        edit = edits[failed.gaps[shard]]
        edit.shards.add(shard)
        edit.failures += damage[shard]


def open_vectors(made: EmbeddingsFolder, partition: Partition) -> Vectors:
    names = {modality: made.embedding_name(modality, partition) for modality in MODALITIES}
    return {modality: np.load(made.path(name), mmap_mode="r") for modality, name in names.items() if made.exists(name)}


def read_metadata(made: EmbeddingsFolder, partition: Partition) -> pa.Table:
    with open_parquet(made, made.metadata_name(partition)) as file:
        return file.read()


def append(revision: Revision, partition: Partition, made: EmbeddingsFolder, new: Sequence[Outcome]) -> None:
    """Publish the rows of samples that had none as a separate partition."""
    source = Partition(0, 1, 0, 1)
    places = [outcome.row for outcome in new if outcome.row is not None]
    counts: dict[str, Any] = {}
    checksums: dict[Modality, str] = {}
    for modality, rows in open_vectors(made, source).items():
        name = revision.embedding_name(modality, partition)
        with revision.staged(name) as staged, NpyWriter(staged, rows.shape[1], rows.dtype) as copy:
            copy.append(rows[places])
        checksums[modality] = copy.checksum
        counts[f"{modality}_count"] = int(rows[places].any(axis=1).sum())
    with revision.staged(revision.metadata_name(partition)) as staged:
        table = read_metadata(made, source).take(number_array(np.array(places, np.int64)))
        with open_writer(staged, table.schema) as parquet:
            parquet.write_table(table)
    stats = Stats(sample_count=len(new), **counts)
    with revision.staged(revision.ledger_name(partition)) as staged:
        writer = LedgerWriter(staged)
        for row, outcome in enumerate(new):
            if is_recorded(outcome) and outcome.record is not None:
                writer.add(outcome.record | {"row": row})
        writer.finish()
    with revision.staged(revision.failures_name(partition)) as staged:
        failures = (describe_failure(failure) for outcome in new for failure in outcome.failures)
        stats.reasons = write_failures(staged, failures)
    stats.finish()
    revision.write_json(revision.stats_name(partition), stats.to_json() | {CHECKSUMS: checksums})
