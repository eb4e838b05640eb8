"""Rows out of metadata/*.parquet: footers are kept, files are opened for each question."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.errors import ReplacedError, StorageError, one_line
from clip_retrieval.layout import METADATA_FOLDER
from clip_retrieval.local_files import check_regular
from clip_retrieval.metadata.arrays import number_array
from clip_retrieval.metadata.schema import as_text, choose_columns, common_schema, conform
from clip_retrieval.storage import Folder

if TYPE_CHECKING:
    import pyarrow.parquet as pq

RECORDS_AT_ONCE = 1000  # Python objects take far more memory than a table

Column = tuple[pa.Field, list[Any]]  # a column of some rows as Python values


class Footer(msgspec.Struct, frozen=True):
    """A parquet file's footer: its row groups and columns."""

    name: str
    schema: pa.Schema
    about: pq.FileMetaData

    @property
    def row_count(self) -> int:
        return int(self.about.num_rows)


class ParquetFiles:
    """The parquet files of a folder in name order, and the columns of all of them."""

    def __init__(self, folder: Folder, subfolder: str = METADATA_FOLDER) -> None:
        self.folder = folder
        self.sizes = folder.sizes(subfolder, ".parquet")  # bytes, by name
        prefix = f"{subfolder}/" if subfolder else ""
        self.footers = [read_footer(folder, prefix + name) for name in sorted(self.sizes)]

    @property
    def row_count(self) -> int:
        return sum(footer.row_count for footer in self.footers)

    @cached_property
    def schema(self) -> pa.Schema:
        """The union of the files' columns; see `common_schema`."""
        return common_schema([(footer.schema, footer.about) for footer in self.footers])


class ParquetMetadata:
    """Random access to the rows of a folder's parquet files; only the requested row groups are read."""

    def __init__(self, files: ParquetFiles) -> None:
        self.files = files
        self.starts = np.cumsum([0, *[footer.row_count for footer in files.footers]])

    @property
    def row_count(self) -> int:
        return int(self.starts[-1])

    @property
    def schema(self) -> pa.Schema:
        return self.files.schema

    def rows(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these ids, in their order; see Metadata."""
        check_ids(ids, self.row_count)
        schema = choose_columns(self.schema, columns)
        if not schema.names or not len(ids):
            return schema.empty_table()
        owners = np.searchsorted(self.starts, ids, side="right") - 1
        parts, positions = [], []
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            parts.append(self.rows_of(self.files.footers[owner], ids[here] - self.starts[owner], schema))
            positions.append(here)
        return pa.concat_tables(parts).take(number_array(np.argsort(np.concatenate(positions))))

    def values(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> list[Column]:
        """Return the rows with these ids column by column; see Metadata."""
        return as_columns(self.rows(ids, columns))

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return whole columns; see Metadata. They are read into memory."""
        schema = choose_columns(self.schema, names)
        parts = [schema.empty_table()]
        for footer in self.files.footers:
            with reading(self.files.folder, footer.name) as file:
                parts.append(conform(file.read(columns=columns_there(footer, schema)), schema))
        return pa.concat_tables(parts)

    def rows_of(self, footer: Footer, rows: NDArray[np.int64], schema: pa.Schema) -> pa.Table:
        sizes = [footer.about.row_group(group).num_rows for group in range(footer.about.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        groups = np.searchsorted(starts, rows, side="right") - 1
        needed = np.unique(groups)
        with reading(self.files.folder, footer.name) as file:
            if not file.metadata.equals(footer.about):
                raise ReplacedError(
                    f"{self.files.folder.path(footer.name)} was replaced since it was opened; open it again"
                )
            table = file.read_row_groups(needed.tolist(), columns=columns_there(footer, schema))
        skipped = np.zeros(len(sizes), dtype=np.int64)  # rows of the groups before each one that are not in the table
        skipped[needed] = starts[needed] - np.cumsum([0, *[sizes[group] for group in needed[:-1]]])
        return conform(table, schema).take(number_array(rows - skipped[groups]))


def as_columns(table: pa.Table) -> list[Column]:
    """Return a table as Python values, column by column."""
    return [(field, column.to_pylist()) for field, column in zip(table.schema, table.columns, strict=True)]


def check_ids(ids: NDArray[np.int64], row_count: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= row_count):
        wrong = ids[(ids < 0) | (ids >= row_count)][0]
        raise StorageError(f"the metadata has {row_count:,} rows, but the index knows id {int(wrong):,}")


def columns_there(footer: Footer, schema: pa.Schema) -> list[str]:
    present = set(footer.schema.names)
    return [name for name in schema.names if name in present]


def open_parquet(folder: Folder, name: str) -> pq.ParquetFile:
    import pyarrow.parquet as pq  # loads TLS: 20 ms of a start that reads metadata.arrow alone

    if folder.is_local:
        check_regular(folder.path(name))
    try:
        return pq.ParquetFile(
            folder.path(name) if folder.is_local else folder.open(name),
            memory_map=folder.is_local,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except PermissionError as error:  # Arrow's message names neither the file nor the reason
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder.path(name)) from error
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{folder.path(name)} is not a readable parquet file: {one_line(error)}") from error


def open_writer(path: Path | pa.NativeFile, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Return a writer of a file whose pages have checksums, which `open_parquet` compares: damage can be valid."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema, compression="snappy", write_page_checksum=True, **options)


def read_records(folder: Folder, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file; memory holds one row group as it is stored, and some rows as Python values."""
    with reading(folder, name) as file:
        for group in range(file.metadata.num_row_groups):
            for some in file.iter_batches(RECORDS_AT_ONCE, row_groups=[group], use_threads=False):
                yield from some.to_pylist()


def read_through(folder: Folder, name: str) -> None:
    """Read a whole parquet file; raises StorageError if it is damaged."""
    with reading(folder, name) as file:
        for group in range(file.metadata.num_row_groups):
            for _ in file.iter_batches(RECORDS_AT_ONCE, row_groups=[group], use_threads=False):
                continue


@contextmanager
def reading(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """Yield an open file, and close it: a folder may have more files than a process may have open."""
    file = open_parquet(folder, name)
    try:
        yield file
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{folder.path(name)} cannot be read: {error}") from error
    finally:
        file.close(force=True)


def read_footer(folder: Folder, name: str) -> Footer:
    """Return a file's footer; raises StorageError if it cannot be read, or has two columns of one name."""
    with reading(folder, name) as file:
        footer = Footer(name, file.schema_arrow, file.metadata)
    twice = next((column for column, count in Counter(footer.schema.names).items() if count > 1), None)
    if twice is not None:
        raise StorageError(f"{folder.path(name)} has two columns called {twice}; write it with one of them")
    return footer


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
        texts = [table_as_text(table, clashing) for table in tables]
        return pa.concat_tables(texts, promote_options="permissive")


def table_as_text(table: pa.Table, names: set[str]) -> pa.Table:
    columns = [
        as_text(column, pa.string()) if name in names else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)
