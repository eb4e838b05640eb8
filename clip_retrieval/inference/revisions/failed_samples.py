"""Which samples of an embeddings folder failed: read from failures/, told apart by the ledger and the metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clip_retrieval.inference.output.failures import FailureRow, read_failures
from clip_retrieval.inference.output.ledger import Record, as_name, read_ledger
from clip_retrieval.layout import IMAGE_PATH, SHARD, SHARD_OFFSET, SHARD_SIZE, EmbeddingsFolder, Partition
from clip_retrieval.metadata import open_parquet
from clip_retrieval.sources.types import SAMPLE_PARTS
from clip_retrieval.words import clean

LOST_READERS = {"killed_reader", "timeout"}  # of a sample that is blamed, `other` is left out as a whole
# Reasons that say what a sample never had: trying again does not help.
ABSENT = {"no_image", "no_caption", "no_metadata", "no_images"}


Name = tuple[str, str]  # shard and key
Place = tuple[str, str | None, int | None]  # shard, key and offset


class Identity(NamedTuple):
    """What distinguishes a sample from all others of its input, as failures and metadata spell it."""

    shard: str
    key: str
    offset: int | None

    @property
    def name(self) -> Name:
        return self.shard, self.key


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a sample that is tried again belongs: a row that lacks something, or the end (`row` is None)."""

    partition: Partition
    name: Name
    row: int | None = None
    place: int | None = None  # number of its record in the partition's ledger
    record: Record | None = None
    is_known: bool = True  # named in failures; else it is in a shard that could not be read


@dataclass(kw_only=True)
class Failed:
    """The failed samples of a folder, and the shards that could not be read to their end."""

    kept: dict[Identity, Target] = field(default_factory=dict)
    left_out: dict[Name, int] = field(default_factory=dict)  # name -> number of samples that have it
    partition_of: dict[Name, Partition] = field(default_factory=dict)
    records: dict[Name, tuple[int, Record]] = field(default_factory=dict)  # records of samples that were left out
    gaps: dict[str, Partition] = field(default_factory=dict)  # shard -> partition
    rows: set[Place] = field(default_factory=set)  # samples that already have a row
    row_names: set[tuple[str, str | None]] = field(default_factory=set)  # (shard, key) of the same
    failures: dict[tuple[Partition, Name], list[FailureRow]] = field(default_factory=dict)
    taken: set[Identity] = field(default_factory=set)
    gone: set[Name] = field(default_factory=set)  # all samples that were left out, whether a second try may help or not
    unclear: set[Name] = field(default_factory=set)  # others that failures name: rows that lack something
    pictures: set[tuple[str, str, int | None]] = field(
        default_factory=set
    )  # (shard, path, size) of rows that are whole
    caption_rows: set[Name] = field(default_factory=set)  # samples that are rows without a picture
    unlisted: list[str] = field(default_factory=list)  # shards with gaps whose rows do not name them

    def __bool__(self) -> bool:
        return bool(self.kept or self.left_out or self.gaps)

    def count(self) -> int:
        return len(self.kept) + sum(self.left_out.values())

    def names(self) -> set[Name]:
        return {one.name for one in self.kept} | set(self.left_out)

    def shards(self) -> set[str]:
        return {one.shard for one in self.kept} | {shard for shard, _ in self.left_out} | set(self.gaps)

    def partitions(self) -> set[Partition]:
        """Return the partitions whose rows may be filled: embeddings of others are not copied."""
        return {target.partition for target in self.kept.values()}

    def is_row(self, sample: Identity, path: str | None) -> bool:
        """Say whether a sample already has a row; another key at its place means that the file was rewritten."""
        if path is None:
            return sample.name in self.caption_rows and sample.name not in self.left_out
        return (sample.shard, path, sample.offset) in self.rows

    def target(self, sample: Identity, path: str | None) -> Target | None:
        """Return where a sample belongs; None if it already has a row, or did not fail. `path` is its image_path."""
        if sample in self.kept:
            return self.kept[sample]
        if self.is_row(sample, path) or sample in self.taken:
            return None
        partition = self.partition_of.get(sample.name) if sample.name in self.left_out else self.gaps.get(sample.shard)
        is_moved = (
            (sample.shard, path) in self.row_names and path is not None and sample.name not in self.left_out
        )  # the shard was rewritten, and the sample is elsewhere in it
        if partition is None or is_moved:
            return None
        self.taken.add(sample)
        place, record = self.records.get(sample.name, (None, None))
        return Target(
            partition=partition,
            name=sample.name,
            row=None,
            place=place,
            record=record,
            is_known=sample.name in self.left_out,
        )


def find_failed(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> Failed:
    """Read failures, ledger and the needed part of the metadata."""
    failed = Failed()
    has_shards = any(SHARD in schema_names(folder, partition) for partition in partitions)
    for partition in partitions:
        names = add_failures(failed, folder, partition)
        add_records(failed, folder, partition, names)
    if not has_shards:
        failed.unlisted = [*failed.gaps]
        failed.gaps = {}  # rows do not say their shard: a sample could be appended twice
    wanted = {shard for shard, _ in failed.left_out} | set(failed.gaps)
    for partition in partitions:
        for shard, path, offset, size in rows_of(folder, partition, wanted):
            failed.rows.add((shard, path, offset))
            failed.row_names.add((shard, path))
            if path is not None and Identity(shard, path, offset) not in failed.kept:
                failed.pictures.add((shard, path, size))
    return failed


def add_failures(failed: Failed, folder: EmbeddingsFolder, partition: Partition) -> set[Name]:
    """Add the samples that a partition's failures name; return the names of those that a second try may help."""
    counts: dict[Name, Counter[str]] = {}  # name -> part -> samples that were left out
    for failure in read_failures(folder, partition):
        is_passing = failure["reason"] not in ABSENT
        is_gone = not failure["row_kept"] and (failure["part"] in SAMPLE_PARTS or failure["reason"] in LOST_READERS)
        (failed.gone if is_gone else failed.unclear).add((failure["shard"], failure["key"]))
        if failure["part"] == "shard" and is_passing:
            failed.gaps[failure["shard"]] = partition
        if failure["part"] in SAMPLE_PARTS:
            name = failure["shard"], failure["key"]
            failed.failures.setdefault((partition, name), []).append(failure)
            if failure["reason"] == "no_image" and failure["row_kept"]:
                failed.caption_rows.add(name)
            if is_passing:
                counts.setdefault(name, Counter())[failure["part"]] += not failure["row_kept"]
    left_out = {name: max(by_part.values()) for name, by_part in counts.items() if any(by_part.values())}
    failed.left_out |= left_out
    failed.partition_of |= dict.fromkeys(left_out, partition)
    return set(counts)


def add_records(failed: Failed, folder: EmbeddingsFolder, partition: Partition, names: set[Name]) -> None:
    if not names:
        return
    for place, record in enumerate(read_ledger(folder, folder.ledger_name(partition))):
        shard = "" if record["shard"] is None else clean(as_name(record["shard"]))
        one = Identity(shard, clean(as_name(record["key"])), record["offset"])
        if record["deleted"] or one.name not in names:
            continue
        if record["row"] is None:
            failed.records[one.name] = place, record
        elif any(failure["row_kept"] for failure in failed.failures[partition, one.name]):
            failed.kept[one] = Target(partition=partition, name=one.name, row=record["row"], place=place, record=record)


def schema_names(folder: EmbeddingsFolder, partition: Partition) -> list[str]:
    with open_parquet(folder, folder.metadata_name(partition)) as file:
        return list(file.schema_arrow.names)


def rows_of(
    folder: EmbeddingsFolder, partition: Partition, shards: set[str]
) -> Iterator[tuple[str, str | None, int | None, int | None]]:
    """Yield shard, path, offset and size of the pictures that rows of these shards have."""
    columns = [SHARD, IMAGE_PATH, SHARD_OFFSET, SHARD_SIZE]
    with open_parquet(folder, folder.metadata_name(partition)) as file:
        if not shards or not set(columns) <= set(file.schema_arrow.names):
            return
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
            yield from (row for row in rows if row[0] in shards)
