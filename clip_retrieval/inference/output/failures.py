"""failures/*.parquet: the parts of the input that could not be used, and why. Schema, writer and reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_retrieval.inference.output.groups import GroupWriter
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.metadata import read_records
from clip_retrieval.sources.types import Failure
from clip_retrieval.words import clean

FAILURE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("part", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("row_kept", pa.bool_()),
    ]
)

RETRY_MARK = {"clip_retrieval": "made again"}

FailureRow = dict[str, Any]  # one row of FAILURE_SCHEMA


class FailureWriter:
    """Writes the failures of a partition, and counts their reasons."""

    def __init__(self, path: Path, *, is_retry: bool = False) -> None:
        """Open the file; that of a retry has a mark in its schema, so its size is never that of an empty file."""
        self.groups = GroupWriter(path, FAILURE_SCHEMA.with_metadata(RETRY_MARK) if is_retry else FAILURE_SCHEMA)
        self.reasons: Counter[str] = Counter()  # part:reason -> how often

    def add(self, rows: Iterable[FailureRow]) -> None:
        for row in rows:
            self.reasons[f"{row['part']}:{row['reason']}"] += 1
            self.groups.add(row)

    def finish(self) -> None:
        self.groups.finish()

    def close(self) -> None:
        self.groups.close()


def write_failures(path: Path, rows: Iterable[FailureRow]) -> Counter[str]:
    """Write a whole file, and return how often it has each reason."""
    writer = FailureWriter(path)
    try:
        writer.add(rows)
        writer.finish()
    finally:
        writer.close()
    return writer.reasons


def read_failures(folder: EmbeddingsFolder, partition: Partition) -> Iterator[FailureRow]:
    yield from read_records(folder, folder.failures_name(partition))


def describe_failure(failure: Failure) -> FailureRow:
    """Return the failure as a row, with names that are valid UTF-8."""
    values = {name: getattr(failure, name) for name in FAILURE_SCHEMA.names}
    return {name: clean(value) if isinstance(value, str) else value for name, value in values.items()}
