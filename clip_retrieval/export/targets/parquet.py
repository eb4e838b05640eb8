"""Parquet files with id, vector and metadata, which pandas, DuckDB, polars and Spark read directly."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_retrieval.errors import ExportError, StorageError, one_line
from clip_retrieval.export.arrow_rows import as_fetched, make_schema, make_table, vectors_of
from clip_retrieval.export.columns import ID, VECTOR
from clip_retrieval.export.exact import Nearest
from clip_retrieval.export.source import Block, Ids
from clip_retrieval.export.target import Fetched, Setup, parse_mark
from clip_retrieval.layout import check_not_inside
from clip_retrieval.metadata.parquet import reading
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder, check_writable

ABOUT = "_export.json"  # engines skip names that begin with _
PART = re.compile(r"part-(\d{12})\.parquet")
GROUP_ROWS = 8_192  # rows that a reader has to decode for one of them
COMPRESSION = "zstd"


class ParquetTarget:
    """A folder of files; the number in a file's name is its first row.

    Vectors are fp32, since polars and older readers cannot read half precision in parquet. Rows that were fp16 take
    no more space than in fp16, because bytes are split into streams.
    """

    answers_at_once = True

    def __init__(self, setup: Setup) -> None:
        self.setup, self.folder = setup, Folder(setup.config.place, keeps=True)
        self.name = self.folder.url
        self.dtype = np.dtype(np.float16 if setup.config.precision == "fp16" else np.float32)
        self.open = contextlib.ExitStack()
        self.schema = make_schema(setup, self.dtype)

    def begin(self) -> int:
        """Open or make the folder; see Target. Files are whole or absent, so their names say which rows are done."""
        check_not_inside(self.folder, ExportError)
        size = self.setup.config.batch_rows
        facts = self.setup.facts(self.dtype) | {"batch_size": size}
        if self.folder.exists(ABOUT):
            if self.setup.config.overwrite:
                self.clear()
            else:
                self.compare(facts)
        elif self.folder.exists() and (there := self.folder.names("", "")):
            raise ExportError(f"{self.name} has {there[0]} and is not an export; name another folder")
        check_writable(self.folder)
        self.open.enter_context(only_one(self.folder))
        self.folder.remove_leftovers()
        if not self.folder.exists(ABOUT):
            self.folder.write_json(ABOUT, facts)
        starts = [int(match[1]) for name in self.names() if (match := PART.fullmatch(name))]
        return min(starts[-1] // size * size + size, self.setup.row_count) if starts else 0

    def compare(self, facts: dict[str, Any]) -> None:
        """Raise ExportError if the folder is another export; an export without files yet is replaced by this one."""
        try:
            found = self.folder.read_json(ABOUT)
        except StorageError as error:
            raise ExportError(f"{one_line(error)}; give --overwrite to export again, or remove {self.name}") from error
        if found == facts:
            return
        if parse_mark(json.dumps(found)) is not None and not self.names():
            self.clear()
            return
        self.setup.read_mark(json.dumps(found), self.dtype, self.name)
        raise ExportError(f"{self.name} was begun with --batch_size {found.get('batch_size')}; give it again")

    def clear(self) -> None:
        """Remove the files of an earlier export; last the one that says that they are ours."""
        for name in [name for name in self.names() if PART.fullmatch(name)]:
            self.folder.remove(name)
        self.folder.remove(ABOUT)

    def names(self) -> list[str]:
        return self.folder.names("", ".parquet")

    def write(self, block: Block) -> None:
        """Write a file; see Target."""
        if not len(block.ids):
            return
        table = make_table(block, self.schema)
        streams = {} if self.dtype == np.float16 else {"use_byte_stream_split": [f"{VECTOR}.list.element"]}
        texts = [column.name for column in self.setup.columns]
        with self.folder.staged(f"part-{block.start:012d}.parquet") as staged:
            pq.write_table(
                table, staged, compression=COMPRESSION, row_group_size=GROUP_ROWS, use_dictionary=texts, **streams
            )

    def finish(self) -> None:
        """See Target."""

    def ids(self) -> Iterator[Ids]:
        for name in self.names():
            with reading(self.folder, name) as file:
                yield file.read(columns=[ID])[ID].to_numpy()

    def fetch(self, ids: Ids) -> Fetched:
        """Return rows; see Target. Only row groups that hold them are read."""
        found = [self.schema.empty_table()]
        for name in self.names():
            with reading(self.folder, name) as file:
                groups = [group for group in range(file.num_row_groups) if holds(file.metadata.row_group(group), ids)]
                if groups:
                    table = file.read_row_groups(groups).cast(self.schema)
                    found.append(table.filter(pa.array(np.isin(table[ID].to_numpy(), ids))))
        return as_fetched(pa.concat_tables(found), self.setup.dim)

    def offers_exact(self) -> bool:
        return True

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Ids]:
        """Compare all rows in one pass over the files; see Target."""
        del exact
        nearest = Nearest(queries, k)
        for name in self.names():
            with reading(self.folder, name) as file:
                for batch in file.iter_batches(columns=[ID, VECTOR]):
                    nearest.add(batch.column(0).to_numpy(), vectors_of(batch.column(1), self.setup.dim))
        return list(nearest.ids)

    def build_index(self) -> str | None:
        return None

    def close(self) -> None:
        self.open.close()


def holds(group: Any, ids: Ids) -> bool:
    """Say whether a row group may hold one of the ids."""
    about = group.column(0).statistics
    return about is None or bool(((ids >= about.min) & (ids <= about.max)).any())


def open_target(setup: Setup) -> ParquetTarget:
    """Open the folder."""
    return ParquetTarget(setup)
