"""Parquet files of any columns to one Arrow file of rows in id order, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clip_retrieval.checksums import FileSums, sum_files
from clip_retrieval.errors import StorageError
from clip_retrieval.layout import METADATA_ARROW
from clip_retrieval.metadata.arrow import SOURCES
from clip_retrieval.metadata.parquet import Footer, ParquetFiles, columns_there, reading
from clip_retrieval.metadata.schema import choose_columns, conform
from clip_retrieval.storage import Folder

# Fetching costs microseconds per column and batch touched, so batches are large; writing holds one batch twice.
# Uncompressed, since reading one row of a compressed buffer unpacks all of it.
BATCH_ROWS = 1 << 20
BATCH_BYTES = 128 << 20
READ_ROWS = 8192
READ_BYTES = 16 << 20

Advance = Callable[[int], None]


@dataclass(frozen=True)
class WrittenArrow:
    """An Arrow file that was written."""

    rows: int
    columns: tuple[str, ...]
    size: int  # in bytes


def write_metadata_arrow(source: Folder, target: Folder) -> FileSums:
    """Write metadata.arrow of a folder's metadata/*.parquet, if there are any; it appears when it is whole.

    Returns its checksum. Raises StorageError that names a file that cannot be read.
    """
    files = ParquetFiles(source)
    if not files.footers:
        return {}
    with target.staged(METADATA_ARROW) as path:
        write_arrow(files, path)
        return sum_files(Folder(str(path.parent)), path.name)


def write_arrow(
    files: ParquetFiles, path: Path, columns: Sequence[str] | None = None, advance: Advance = lambda _rows: None
) -> WrittenArrow:
    """Write the rows of the files in name order, or these columns of them, to a local path.

    Memory holds one batch, however large the files are. `advance` receives the number of rows just written.
    Raises StorageError for a file that cannot be read, and for columns that no file has.
    """
    missing = [name for name in columns or () if name not in files.schema.names]
    if missing:
        raise StorageError(
            f"no parquet file in {files.folder.url} has a column {', '.join(missing)}; there are: "
            f"{', '.join(files.schema.names)}"
        )
    schema = choose_columns(files.schema, columns)
    described = schema.with_metadata({SOURCES: json.dumps(files.sizes).encode()})
    with pa.ipc.new_file(str(path), described) as writer:
        for batch in full_batches(read_parts(files, schema)):
            writer.write_table(batch)
            advance(len(batch))
    return WrittenArrow(files.row_count, tuple(schema.names), path.stat().st_size)


def read_parts(files: ParquetFiles, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of all files in order, a few thousand at a time, with the columns of the schema."""
    for footer in files.footers:
        columns = columns_there(footer, schema)
        with reading(files.folder, footer.name) as file:
            for group in range(footer.about.num_row_groups):
                rows = rows_at_once(footer, group)
                for part in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    yield conform(pa.Table.from_batches([part]), schema)


def rows_at_once(footer: Footer, group: int) -> int:
    """Return the rows to unpack at a time, so that large values do not fill memory."""
    about = footer.about.row_group(group)
    return max(1, min(READ_ROWS, READ_BYTES * int(about.num_rows) // max(1, int(about.total_byte_size))))


def full_batches(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join parts to tables of one chunk, up to BATCH_ROWS rows or BATCH_BYTES bytes."""
    kept: list[pa.Table] = []
    rows = size = 0
    for part in parts:
        if kept and (rows + len(part) > BATCH_ROWS or size + part.nbytes > BATCH_BYTES):
            yield pa.concat_tables(kept).combine_chunks()
            kept, rows, size = [], 0, 0
        kept.append(part)
        rows, size = rows + len(part), size + part.nbytes
    if kept:
        yield pa.concat_tables(kept).combine_chunks()
