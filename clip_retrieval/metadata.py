"""Rows of metadata by id: row r over metadata/*.parquet in name order is the sample with index id r."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_retrieval.errors import StorageError
from clip_retrieval.storage import Folder


class Metadata:
    """Random access to the rows of a folder's metadata; only the row groups asked for are read."""

    def __init__(self, folder: Folder, names: Sequence[str]) -> None:
        self.files = [open_parquet(folder, f"metadata/{name}") for name in names]
        counts = [file.metadata.num_rows for file in self.files]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def row_count(self) -> int:
        return int(self.starts[-1])

    def rows(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the rows with these ids, in their order; columns that a file lacks are null there.

        Raises StorageError where an id is outside of the metadata.
        """
        if len(ids) and (ids.min() < 0 or ids.max() >= self.row_count):
            raise StorageError(f"the metadata has {self.row_count:,} rows, but the index knows id {int(ids.max()):,}")
        owners = np.searchsorted(self.starts, ids, side="right") - 1
        parts, positions = [], []
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            parts.append(read_rows(self.files[owner], ids[here] - self.starts[owner]))
            positions.append(here)
        if not parts:
            return self.files[0].schema_arrow.empty_table() if self.files else pa.table({})
        order = np.argsort(np.concatenate(positions))
        return concat(parts).take(pa.array(order))


def open_metadata(folder: Folder) -> Metadata | None:
    """Open the metadata of an embeddings or index folder; None where there is none."""
    names = folder.names("metadata", ".parquet")
    return Metadata(folder, names) if names else None


def count_rows(folder: Folder) -> int | None:
    """Return the number of metadata rows of a folder; None where it has no metadata."""
    metadata = open_metadata(folder)
    return None if metadata is None else metadata.row_count


def open_parquet(folder: Folder, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(folder.path(name) if folder.is_local else folder.open(name), memory_map=folder.is_local)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{folder.path(name)} is no readable parquet file: {error}") from error


def read_rows(file: pq.ParquetFile, rows: NDArray[np.int64]) -> pa.Table:
    """Return these rows of one file, in their order."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    groups = np.searchsorted(starts, rows, side="right") - 1
    needed = np.unique(groups)
    table = file.read_row_groups(needed.tolist())
    skipped = np.zeros(len(sizes), dtype=np.int64)  # rows of the groups before each one that are not in the table
    skipped[needed] = starts[needed] - np.cumsum([0, *[sizes[group] for group in needed[:-1]]])
    return table.take(pa.array(rows - skipped[groups]))


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables whose columns may differ: a column with several types becomes text, numbers the widest number."""
    tables = [table.replace_schema_metadata(None) for table in tables]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        types: dict[str, set[pa.DataType]] = {}
        for table in tables:
            for field in table.schema:
                types.setdefault(field.name, set()).add(field.type)
        clashing = {name for name, found in types.items() if len(found) > 1}
        return pa.concat_tables([as_text(table, clashing) for table in tables], promote_options="permissive")


def as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for name in names & set(table.column_names):
        texts = [value if isinstance(value, str | None) else to_json(value) for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return table


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
