"""Records to the row groups of a parquet file, in flat memory, however long the file becomes.

records ── a thousand ──▶ table ── ten tables ──▶ row group
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_retrieval.metadata import RECORDS_AT_ONCE, make_table, open_writer

TABLES_PER_GROUP = 10
RECORDS_PER_GROUP = RECORDS_AT_ONCE * TABLES_PER_GROUP
PAGE_BYTES = 1 << 14  # a column's page is in memory until it is full

TableOf = Callable[[Sequence[dict[str, Any]], pa.Schema], pa.Table]


class GroupWriter:
    """Streams records into one parquet file; one without records has an empty row group."""

    def __init__(
        self, path: Path, schema: pa.Schema, table_of: TableOf = make_table, repeated: Sequence[str] | None = None
    ) -> None:
        """Open the file; columns that are not `repeated` have no dictionary of their values, None: all have one."""
        self.schema, self.table_of = schema, table_of
        self.writer = open_writer(
            path,
            schema,
            use_dictionary=True if repeated is None else list(repeated),
            data_page_size=PAGE_BYTES,
        )
        self.pending: list[dict[str, Any]] = []  # records of the next table
        self.tables: list[pa.Table] = []  # tables of the next row group
        self.is_empty = True

    def add(self, record: dict[str, Any]) -> None:
        self.pending.append(record)
        if len(self.pending) == RECORDS_AT_ONCE:
            self.pack()
        if len(self.tables) == TABLES_PER_GROUP:
            self.flush()

    def pack(self) -> None:
        self.tables.append(self.table_of(self.pending, self.schema))
        self.pending = []

    def flush(self) -> None:
        """Write a row group; otherwise Arrow keeps the memory, and a run's memory grows from group to group."""
        self.writer.write_table(pa.concat_tables(self.tables))
        self.tables, self.is_empty = [], False
        pa.default_memory_pool().release_unused()

    def finish(self) -> None:
        """Complete the file."""
        if self.pending or (self.is_empty and not self.tables):
            self.pack()
        if self.tables:
            self.flush()
        self.close()

    def close(self) -> None:
        self.writer.close()
