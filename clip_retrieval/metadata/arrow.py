"""Rows out of Arrow files that are mapped into memory: metadata.arrow, or those of `parquet_to_arrow`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.errors import StorageError, one_line
from clip_retrieval.local_files import check_regular
from clip_retrieval.metadata.arrays import DamageError, check_values, number_array
from clip_retrieval.metadata.cells import Cells
from clip_retrieval.metadata.direct import DirectColumn, DirectFile, array_of, open_direct
from clip_retrieval.metadata.parquet import Column, ParquetFiles, ParquetMetadata, as_columns, check_ids
from clip_retrieval.metadata.schema import choose_columns
from clip_retrieval.process.resources import count_cores
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

SOURCES = b"clip_retrieval.sources"  # schema key: name and bytes of each source parquet file

MOST_CELLS = 1024  # rows that are read value by value
MOST_KNOWN = 64  # choices of columns that are kept
FEW = 256  # values that are fetched one by one
ROWS_AT_ONCE = 1 << 14  # rows that one thread fetches in file order, then reorders by id

Split = tuple[list[tuple[int, NDArray[np.int64]]], list[int] | None]  # batch and rows in it; place of each id


class ArrowMetadata:
    """Random access to the rows of Arrow files, one after the other; pages come into memory as rows are requested.

    Arrow trusts the offsets in a file, and reads anywhere in memory if damaged. So the offsets of the requested
    rows are checked first, which takes microseconds; checking whole batches would read all of them. A whole column is
    checked when it is first requested. After the first damage, rows come from the parquet files that metadata.arrow was
    made of.
    """

    def __init__(self, folder: Folder, names: Sequence[str]) -> None:
        opened = [open_table(folder, name) for name in names]
        tables = [table for table, _ in opened]
        for name, table in zip(names, tables, strict=True):
            if table.schema != tables[0].schema:
                raise StorageError(
                    f"{folder.path(name)} has other columns than {names[0]}; make both with one `parquet_to_arrow`"
                )
        self.folder, self.names = folder, names
        self.schema = tables[0].schema
        self.batches = [batch for table in tables for batch in table.to_batches() if len(batch)]
        self.files = [file for table, file in opened for batch in table.to_batches() if len(batch)]  # by batch
        self.starts = np.cumsum([0, *map(len, self.batches)])
        self.whole: set[str] = set()  # columns that were checked from end to end
        self.instead: ParquetMetadata | None = None
        self.replacing = Lock()
        self.opened: dict[tuple[int, int], Cells] = {}  # by batch and column
        self.known_fields: dict[tuple[str, ...] | None, list[tuple[int, pa.Field]]] = {}  # none if Cells cannot read
        self.direct: dict[int, list[DirectColumn]] = {}  # by column, those of all batches; none if one cannot be read

    @property
    def row_count(self) -> int:
        return int(self.starts[-1])

    def rows(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these ids, in their order; see Metadata. Raises StorageError if they are damaged."""
        check_ids(ids, self.row_count)
        if self.instead is None:
            try:
                return self.read_rows(ids, choose_columns(self.schema, columns))
            except (pa.ArrowInvalid, DamageError) as error:
                self.replace(error)
        assert self.instead is not None
        return self.instead.rows(ids, columns)

    def replace(self, error: Exception) -> None:
        """Read the parquet files from now on; raises StorageError if there are none."""
        with self.replacing:
            if self.instead is not None:
                return  # another thread met the damage too
            files = ParquetFiles(self.folder)
            sentence = f"{' or '.join(map(self.folder.path, self.names))} is damaged ({one_line(error)})"
            if not files.footers:
                raise StorageError(sentence, advice="make it again") from error
            logger.warning("%s; the parquet files next to it are read, which is slower", sentence)
            self.instead = ParquetMetadata(files)

    def read_rows(self, ids: NDArray[np.int64], schema: pa.Schema) -> pa.Table:
        if not schema.names:
            return schema.empty_table()
        places = [self.schema.get_field_index(name) for name in schema.names]
        parts = [ids[start : start + ROWS_AT_ONCE] for start in range(0, len(ids), ROWS_AT_ONCE)]

        def fetch(part: NDArray[np.int64]) -> pa.RecordBatch:
            return pa.RecordBatch.from_arrays(self.gather(part, places), schema=schema)

        if len(parts) < 2:
            return pa.Table.from_batches([fetch(part) for part in parts], schema=schema)
        with ThreadPoolExecutor(count_cores()) as threads:  # arrow releases the GIL while it copies
            return pa.Table.from_batches(list(threads.map(fetch, parts)), schema=schema)

    def values(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> list[Column]:
        """Return the rows with these ids column by column; see Metadata. Raises StorageError if they are damaged."""
        check_ids(ids, self.row_count)
        fields = self.cell_fields(None if columns is None else tuple(columns))
        if len(ids) > MOST_CELLS or self.instead is not None or fields is None:
            return as_columns(self.rows(ids, columns))
        split = self.split(ids)
        try:
            return [(field, self.read_cells(place, split)) for place, field in fields]
        except DamageError as error:
            self.replace(error)
            return as_columns(self.rows(ids, columns))

    def cell_fields(self, columns: tuple[str, ...] | None) -> list[tuple[int, pa.Field]] | None:
        """Return the places and fields of these columns, asked of Arrow once; None if Cells cannot read them all."""
        if (known := self.known_fields.get(columns)) is not None:
            return known or None
        schema = choose_columns(self.schema, columns)
        can_read = all(Cells.can_read(field.type) for field in schema)
        found = [(self.schema.get_field_index(field.name), field) for field in schema] if can_read else []
        if len(self.known_fields) >= MOST_KNOWN:
            self.known_fields.clear()
        self.known_fields[columns] = found
        return found or None

    def split(self, ids: NDArray[np.int64]) -> Split:
        """Return the rows of each batch among these, and the place of each id in that sequence; None: its own."""
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        cuts = np.searchsorted(ordered, self.starts)
        touched = np.flatnonzero(np.diff(cuts)).tolist()
        if len(touched) == 1:
            return [(touched[0], ids - self.starts[touched[0]])], None
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        rows = [(owner, ordered[cuts[owner] : cuts[owner + 1]] - self.starts[owner]) for owner in touched]
        return rows, back.tolist()

    def read_cells(self, place: int, split: Split) -> list[Any]:
        """Return the values of a column at the rows that were split, in the order of their ids."""
        parts, back = split
        found = [value for batch, rows in parts for value in self.cells(batch, place).read(rows)]
        return found if back is None else [found[at] for at in back]

    def cells(self, batch: int, place: int) -> Cells:
        """Return a column of a batch, opened once."""
        known = self.opened.get((batch, place))
        if known is None:
            known = self.opened[batch, place] = Cells(self.batches[batch].column(place))
        return known

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return whole columns; see Metadata. Nothing is copied. Raises StorageError if they are damaged."""
        if self.instead is None:
            schema = choose_columns(self.schema, names)
            table = pa.Table.from_batches([batch.select(schema.names) for batch in self.batches], schema=schema)
            try:
                table.select([name for name in schema.names if name not in self.whole]).validate(full=True)
            except pa.ArrowInvalid as error:
                self.replace(error)
            else:
                self.whole.update(schema.names)
                return table
        assert self.instead is not None
        return self.instead.columns(names)

    def gather(self, ids: NDArray[np.int64], places: Sequence[int]) -> list[pa.Array]:
        """Return the values of the columns at these places; those of a few rows are read from the file, not the map."""
        direct = {place: self.direct_columns(place) for place in places} if len(ids) <= MOST_CELLS else {}
        mapped = [place for place in places if not direct.get(place)]
        found = dict(zip(mapped, self.gather_mapped(ids, mapped), strict=True)) if mapped else {}
        if len(mapped) < len(places):
            owners = np.searchsorted(self.starts, ids, side="right") - 1
            rows = list(zip(owners.tolist(), (ids - self.starts[owners]).tolist(), strict=True))
            for place in direct.keys() - mapped:
                columns = direct[place]
                found[place] = array_of(columns[0].kind, [columns[owner].read(row) for owner, row in rows])
        return [found[place] for place in places]

    def direct_columns(self, place: int) -> list[DirectColumn]:
        """Return a column of all batches for direct reading; none if one of them cannot be read directly."""
        if place not in self.direct:
            of_batches = zip(self.files, self.batches, strict=True)
            columns = [DirectColumn(file, batch.column(place)) for file, batch in of_batches if file is not None]
            is_readable = len(columns) == len(self.batches) and all(column.can_read for column in columns)
            self.direct[place] = columns if is_readable else []
        return self.direct[place]

    def gather_mapped(self, ids: NDArray[np.int64], places: Sequence[int]) -> list[pa.Array]:
        """Return the values of the columns at these places: batch by batch, then in the order of the ids."""
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        cuts = np.searchsorted(ordered, self.starts)
        touched = np.flatnonzero(np.diff(cuts))
        if len(touched) == 1:
            owner = int(touched[0])
            return take_columns(self.batches[owner], places, ids - self.starts[owner])
        rows = [ordered[cuts[owner] : cuts[owner + 1]] - self.starts[owner] for owner in touched]
        parts = [take_columns(self.batches[owner], places, part) for owner, part in zip(touched, rows, strict=True)]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return [take(pa.concat_arrays(column), back) for column in zip(*parts, strict=True)]


def take_columns(batch: pa.RecordBatch, places: Sequence[int], rows: NDArray[np.int64]) -> list[pa.Array]:
    taken = []
    for place in places:
        column = batch.column(place)
        check_values(column, rows)
        values = take(column, rows)
        values.validate(full=True)
        taken.append(values)
    return taken


def take(values: pa.Array, places: NDArray[np.int64]) -> pa.Array:
    """Return the values at some places, which are all within the array."""
    if 0 < len(places) <= FEW:
        return pa.concat_arrays([values.slice(place, 1) for place in places.tolist()])
    import pyarrow.compute as pc  # takes longer to load than a few rows to fetch

    return pc.take(values, number_array(places), boundscheck=False)


def open_table(folder: Folder, name: str) -> tuple[pa.Table, DirectFile | None]:
    """Map an Arrow file, and open it for direct reading; one of another store is read into memory.

    Raises StorageError if it is not whole.
    """
    path = folder.path(name)
    if folder.is_local:
        check_regular(path)
    try:
        before = Path(path).stat() if folder.is_local else None
        source = pa.memory_map(path) if folder.is_local else pa.BufferReader(folder.read_bytes(name))
        table = pa.ipc.open_file(source).read_all()
        table.validate()
        return table, None if before is None else open_direct(path, source, before)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"{path} is not a whole Arrow file: {error}") from error


def read_sources(schema: pa.Schema) -> dict[str, int] | None:
    """Return names and bytes of the parquet files that an Arrow file was made of; None if it does not say.

    A damaged list counts as an empty one.
    """
    said = (schema.metadata or {}).get(SOURCES)
    if said is None:
        return None
    try:
        return {str(name): int(size) for name, size in json.loads(said).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
