"""An existing partition, with some of its rows changed: emptied, renamed or filled. Rows never move.

Files are copied with the change and published into a `Revision`; memory holds some thousand rows at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.embeddings.npy_files import read_shape
from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.embeddings.row_sums import CHECKSUMS, ROWS_AT_ONCE, read_blocks
from clip_retrieval.inference.output.failures import FailureRow, describe_failure, read_failures, write_failures
from clip_retrieval.inference.output.ledger import LedgerWriter, Record, read_ledger
from clip_retrieval.inference.revisions.damage import COUNT_NAMES, Damage
from clip_retrieval.inference.revisions.revised import Revision
from clip_retrieval.layout import IMAGE_PATH, MODALITIES, Modality, Partition
from clip_retrieval.metadata import concat, empty_table, make_array, open_parquet, open_writer
from clip_retrieval.metadata.joined import mark_columns_stale
from clip_retrieval.sources.types import SAMPLE_PARTS, Failure
from clip_retrieval.words import clean

Vectors = dict[int, NDArray[np.float16]]  # row -> embedding [d]
Name = tuple[str, str]  # shard and key, as failures have them


@dataclass(kw_only=True)
class Edit:
    """The changes of one partition."""

    partition: Partition
    deleted: set[int] = field(default_factory=set)  # rows that become empty
    damage: dict[Modality, Damage] = field(default_factory=dict)  # of embeddings whose rows all become empty
    image_paths: dict[int, str] = field(default_factory=dict)  # row -> its new one
    vectors: dict[Modality, Vectors] = field(default_factory=dict)
    filled: dict[int, pa.Table] = field(default_factory=dict)  # row -> its metadata [1 row]
    records: dict[int, Record | None] = field(default_factory=dict)  # place in the ledger -> new one, or none
    renamed: dict[Name, str | None] = field(
        default_factory=dict
    )  # name in failures -> new key; None removes the failure
    failures: list[Failure] = field(default_factory=list)  # new ones
    without_other: bool = False  # leave out the failures of files that are not samples
    shards: set[str] = field(default_factory=set)  # shards whose own failures are left out
    skipped_count: int = 0  # change in the number of samples left out

    def apply(self, revision: Revision) -> None:
        """Publish the files that change into the revision."""
        stats = revision.read_json(revision.stats_name(self.partition))
        for modality in MODALITIES:
            if modality in self.damage:
                self.empty_embeddings(revision, self.damage[modality], stats)
            elif self.deleted or self.vectors.get(modality):
                self.write_embeddings(revision, modality, stats)
        if self.deleted or any(self.vectors.values()):
            mark_columns_stale(revision)
        if self.deleted or self.image_paths or self.filled:
            self.write_metadata(revision)
        if self.records:
            self.write_ledger(revision)
        if self.renamed or self.failures or self.without_other or self.shards:
            stats["reasons"] = self.write_failures(revision)
        stats["skipped_count"] += self.skipped_count
        stats["deleted_count"] = stats.get("deleted_count", 0) + len(self.deleted)
        revision.write_json(revision.stats_name(self.partition), stats)

    def write_embeddings(self, revision: Revision, modality: Modality, stats: dict[str, Any]) -> None:
        """Copy the rows with the change. Raises IndexBuildError if they differ from what was written."""
        name = revision.embedding_name(modality, self.partition)
        if not revision.exists(name):
            return
        shape = read_shape(revision, name)
        with revision.staged(name) as staged, NpyWriter(staged, shape.axes[1], shape.dtype) as writer:
            for rows in read_blocks(revision, name):
                stats[COUNT_NAMES[modality]] += self.change(rows, writer.row_count, self.vectors.get(modality, {}))
                writer.append(rows)
        stats.setdefault(CHECKSUMS, {})[modality] = writer.checksum

    def change(self, rows: NDArray[Any], first: int, vectors: Vectors) -> int:
        """Empty and fill rows first.. of the partition; return how many more of them have an embedding."""
        here = range(first, first + len(rows))
        deleted = [row - first for row in self.deleted.intersection(here)]
        emptied = int(rows[deleted].any(axis=1).sum())
        rows[deleted] = 0
        vacant = [row for row in vectors.keys() & here if not rows[row - first].any()]  # no embedding is replaced
        for row in vacant:
            rows[row - first] = vectors[row]
        return sum(bool(rows[row - first].any()) for row in vacant) - emptied

    def empty_embeddings(self, revision: Revision, damage: Damage, stats: dict[str, Any]) -> None:
        """Write zero rows in place of a damaged file: rows after it keep their numbers."""
        kind = np.dtype(np.float16)
        with (
            revision.staged(revision.embedding_name(damage.modality, self.partition)) as staged,
            NpyWriter(staged, damage.dimension, kind) as writer,
        ):
            for start in range(0, damage.row_count, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, damage.row_count - start)
                writer.append(np.zeros((count, damage.dimension), kind))
        stats[COUNT_NAMES[damage.modality]] = 0
        stats.setdefault(CHECKSUMS, {})[damage.modality] = writer.checksum

    def write_metadata(self, revision: Revision) -> None:
        name = revision.metadata_name(self.partition)
        with open_parquet(revision, name) as file, revision.staged(name) as staged:
            schema = concat([empty_table(file.schema_arrow), *self.filled.values()]).schema
            schema = schema.remove_metadata()
            with open_writer(staged, schema) as writer:
                first = 0
                for group in range(file.metadata.num_row_groups):
                    rows = file.read_row_group(group, use_threads=False)  # each thread of Arrow's keeps memory
                    table = self.changed(concat([rows, empty_table(schema)]), first)
                    writer.write_table(table.cast(schema))
                    first += len(table)
                    del rows, table
                    pa.default_memory_pool().release_unused()

    def changed(self, table: pa.Table, first: int) -> pa.Table:
        """Return rows first.. of the partition with their changes."""
        here = range(first, first + len(table))
        added = [row for row in self.filled if row in here]
        if not added and not any(row in here for row in (*self.deleted, *self.image_paths)):
            return table
        places: list[int | None] = list(range(len(table)))
        for number, row in enumerate(added):
            places[row - first] = len(table) + number
        for row in self.deleted.intersection(here):
            places[row - first] = None  # null in every column
        table = concat([table, *(self.filled[row] for row in added)]).take(make_array(places, pa.int64()))
        if self.image_paths and IMAGE_PATH in table.column_names:
            old = enumerate(table[IMAGE_PATH].to_pylist(), first)
            paths = [value if value is None else self.image_paths.get(row, value) for row, value in old]
            column = make_array(paths, pa.string())
            table = table.set_column(table.column_names.index(IMAGE_PATH), IMAGE_PATH, column)
        return table

    def write_ledger(self, revision: Revision) -> None:
        name = revision.ledger_name(self.partition)
        with revision.staged(name) as staged:
            writer = LedgerWriter(staged)
            for place, record in enumerate(read_ledger(revision, name)):
                changed = self.records.get(place, record)
                if changed is not None:
                    writer.add(changed)
            writer.finish()

    def write_failures(self, revision: Revision) -> Counter[str]:
        """Write the failures; return how often each reason is among them."""
        failures = self.new_failures(read_failures(revision, self.partition))
        with revision.staged(revision.failures_name(self.partition)) as staged:
            return write_failures(staged, failures)

    def new_failures(self, failures: Iterable[FailureRow]) -> Iterator[FailureRow]:
        yield from (new for old in failures if (new := self.new_failure(old)) is not None)
        yield from map(describe_failure, self.failures)

    def new_failure(self, old: FailureRow) -> FailureRow | None:
        if old["part"] not in SAMPLE_PARTS:
            is_gone = old["shard"] in self.shards if old["part"] == "shard" else self.without_other
            return None if is_gone else old
        name = old["shard"], old["key"]
        if name not in self.renamed:
            return old
        key = self.renamed[name]
        return None if key is None else old | {"key": clean(key)}
