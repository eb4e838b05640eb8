"""The ledger of a partition: which files each row was made of, so that a later run knows what is new or changed.

For a folder of files it has every sample, also those that were left out. For other inputs it has the rows that lack a
part, so that `--retry_failed` finds them again. Names are bytes: file names may not be UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_retrieval.inference.output.groups import GroupWriter
from clip_retrieval.inference.types import Row
from clip_retrieval.metadata import read_records
from clip_retrieval.sources.types import SAMPLE_PARTS, Failure, FileState, Inventory, Part
from clip_retrieval.storage import Folder

DIGEST_BYTES = 16
LEDGER_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # row number in the partition; null if the sample was left out
        ("deleted", pa.bool_()),
        ("key", pa.binary()),
        ("shard", pa.binary()),
        ("offset", pa.int64()),
        *(
            (f"{part}_{name}", kind)
            for part in SAMPLE_PARTS
            for name, kind in (
                ("file", pa.binary()),
                ("size", pa.int64()),
                ("stamp", pa.string()),
                ("digest", pa.binary(DIGEST_BYTES)),
            )
        ),
    ]
)

Record = dict[str, Any]  # one row of LEDGER_SCHEMA


class LedgerWriter:
    """Streams records into one parquet file."""

    def __init__(self, path: Path, inventory: Inventory | None = None) -> None:
        self.inventory = inventory
        self.groups = GroupWriter(path, LEDGER_SCHEMA, repeated=["shard"])
        self.left_out = ""

    def add_rows(self, rows: Sequence[Row], first: int) -> None:
        """Record the partition's rows from `first` on: all of them, or only the incomplete ones."""
        for number, row in enumerate(rows, first):
            if self.inventory is not None or row.failures:
                self.add(self.record(row.key, number) | origin_of(row) | digests_of(row))

    def add_left_out(self, failures: Sequence[Failure]) -> None:
        """Record a folder's samples without a row; the failures of one sample are adjacent."""
        for failure in failures:
            if self.inventory is None or failure.row_kept or failure.part not in SAMPLE_PARTS:
                continue
            if failure.key != self.left_out:
                self.add(self.record(failure.key, None))
            self.left_out = failure.key

    def record(self, key: str, row: int | None) -> Record:
        files = {} if self.inventory is None else self.inventory.files_of(key)
        return {"row": row, "deleted": False, "key": as_bytes(key)} | describe_files(files)

    def add(self, record: Record) -> None:
        self.groups.add(record)

    def finish(self) -> None:
        self.groups.finish()

    def close(self) -> None:
        self.groups.close()


def read_ledger(folder: Folder, name: str) -> Iterator[Record]:
    """Yield the records of a partition's ledger, with a few thousand in memory."""
    yield from read_records(folder, name)


def describe_files(files: Mapping[Part, FileState]) -> Record:
    record: Record = {}
    for part, state in files.items():
        record |= {f"{part}_file": as_bytes(state.path), f"{part}_size": state.size, f"{part}_stamp": state.stamp}
    return record


def origin_of(row: Row) -> Record:
    return {} if row.origin is None else {"shard": as_bytes(row.origin.shard), "offset": row.origin.offset}


def digests_of(row: Row) -> Record:
    return {f"{part}_digest": digest for part, digest in row.digests.items()}


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def as_name(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
