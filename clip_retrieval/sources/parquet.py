"""Parquet: row groups, read a few pages at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.blobs import check_regular, may_pass, open_store, store_errors, with_retries
from clip_retrieval.errors import SourceError, first_line
from clip_retrieval.paths import local_path
from clip_retrieval.sources.arrow_rows import MOST_BYTES, check_names, kinds_of, rows_of, types_of
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.content import explain_refusal
from clip_retrieval.sources.patterns import list_inputs
from clip_retrieval.sources.stamps import version_at
from clip_retrieval.sources.tables import Table, TablePart, TableSource, open_tables
from clip_retrieval.sources.types import Failure

PARQUET_SUFFIXES = (".parquet", ".pq", ".parq")
MARK = b"PAR1"
ROWS_PER_UNIT = 10_000
MOST_ROWS = 4096  # per batch
PAGE_BUFFER = 1 << 20  # bytes of a column chunk held in memory, local files
STORE_BUFFER = 4 << 20  # the same for stores, where each read is a request


@dataclass(frozen=True)
class ParquetTable(Table):
    """One parquet file: its columns, and where its row groups begin."""

    starts: Sequence[int]  # first row of each row group, then the total number of rows
    bytes_per_row: int

    def rows(
        self, start: int, stop: int | None, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield the rows; a damaged row group is read up to the damage, and the rest of it is a Failure."""
        last = self.starts[-1] if stop is None else stop
        try:
            with open_parquet(self.url) as file:
                for group, (first, end) in enumerate(pairwise(self.starts)):
                    if first < last and start < end:
                        yield from self.rows_of_group(file, group, range(max(first, start), min(end, last)), columns)
        except (pa.ArrowException, OSError) as error:  # the file changed after its rows were counted
            yield self.lost(start, last, error)

    def rows_of_group(
        self, file: pq.ParquetFile, group: int, numbers: range, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield the rows with these numbers, and one Failure for the damaged rest."""
        first, next_number = self.starts[group], numbers.start
        size = max(1, min(MOST_ROWS, MOST_BYTES // max(1, self.bytes_per_row)))
        for batch_size in (size, 1):  # a damaged batch is lost whole, so it is read again row by row
            try:
                rows = self.group_rows(file, group, batch_size, columns)
                for number, row in islice(rows, next_number - first, numbers.stop - first):
                    yield number, row
                    next_number = number + 1
            except (pa.ArrowException, OSError, ValueError) as error:
                if batch_size == 1:
                    yield self.lost(next_number, numbers.stop, error)
            else:
                return

    def lost(self, start: int, stop: int, error: Exception) -> Failure:
        detail = f"rows {start} to {stop - 1} cannot be read: {first_line(error)}"
        return Failure.of_shard(self.url, reason_of(error), detail)

    def group_rows(
        self, file: pq.ParquetFile, group: int, size: int, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        first = self.starts[group]
        there = [name for name in columns if name in self.kinds]
        with store_errors(self.url):
            for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=there, use_threads=False):
                for row in rows_of(batch, columns):
                    yield first, row
                    first += 1


def reason_of(error: Exception) -> str:
    """Return `unreadable` for errors that may pass, `corrupt` for damage."""
    return "unreadable" if may_pass(error) else "corrupt"


def open_file(url: str) -> IO[bytes]:
    """Open a file of a store for random access, without read-ahead."""
    fs, path = open_store(url)
    return cast("IO[bytes]", with_retries(fs, lambda: fs.open(path, "rb", cache_type="none")))


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    path, options = local_path(url), {"pre_buffer": False, "page_checksum_verification": True}
    if path is not None:
        check_regular(path)
        # pyarrow takes a relative path such as pipe:x/1.parquet or ~/1.parquet for a url or the home folder
        with pq.ParquetFile(path.absolute(), buffer_size=PAGE_BUFFER, **options) as file:
            yield file
        return
    with (
        store_errors(url),
        open_file(url) as stored,
        pq.ParquetFile(stored, buffer_size=STORE_BUFFER, **options) as file,
    ):
        yield file


def open_parquet_source(config: SourceConfig, output_folder: str) -> TableSource:
    """Read the footers of all files; raises SourceError if none has rows and the required columns."""
    parts, row_count = list[TablePart](), 0
    for url in list_inputs(config.input_dataset, PARQUET_SUFFIXES, "parquet file", output_folder):
        found, count = parts_of(url)
        parts += found
        row_count += count
    return open_tables(config, parts, row_count)


def parts_of(url: str) -> tuple[list[TablePart], int]:
    """Return units of at most ROWS_PER_UNIT rows, none across row groups, and the total number of rows."""
    name, version = url.rpartition("/")[2], version_at(url)  # before it is opened: a later one may be another file's
    try:
        with open_parquet(url) as file:
            table = describe(url, file, version)
    except FileNotFoundError as error:
        raise SourceError(f"{url} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        if may_pass(error):
            raise SourceError(f"{url} cannot be read: {first_line(error)}") from error
        reason, detail = explain_refusal(url, "not_parquet", first_line(error), "a readable parquet file", MARK)
        return [TablePart(name, None, damage=Failure.of_shard(url, reason, detail))], 0
    parts = [
        TablePart(f"{name}:{start}-{min(start + ROWS_PER_UNIT, end)}", table, start, min(start + ROWS_PER_UNIT, end))
        for first, end in pairwise(table.starts)
        for start in range(first, end, ROWS_PER_UNIT)
    ]
    return parts, table.starts[-1]


def describe(url: str, file: pq.ParquetFile, version: str) -> ParquetTable:
    about, schema = file.metadata, file.schema_arrow
    check_names(url, schema)
    starts = [0]
    for group in range(about.num_row_groups):
        starts.append(starts[-1] + about.row_group(group).num_rows)
    size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    return ParquetTable(url, kinds_of(schema), types_of(schema), starts, size // max(1, starts[-1]), version=version)
