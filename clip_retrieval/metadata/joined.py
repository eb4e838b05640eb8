"""Metadata with columns that were added later: parquet files of the same rows, in a folder for each set of columns."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.layout import COLUMNS_FOLDER, STALE
from clip_retrieval.metadata.parquet import Column, ParquetFiles, ParquetMetadata
from clip_retrieval.metadata.schema import choose_columns
from clip_retrieval.storage import Folder
from clip_retrieval.words import counted

logger = logging.getLogger(__name__)


class Metadata(Protocol):
    """Random access to rows; safe to call from many threads at once."""

    @property
    def row_count(self) -> int: ...

    @property
    def schema(self) -> pa.Schema: ...

    def rows(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these ids [n], in the order of the ids, duplicates included.

        Only `columns` are read, as far as they exist, in their order; None: all. A file that lacks a column has null
        there. Raises StorageError if an id is outside of the metadata.
        """
        ...

    def values(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> list[Column]:
        """Return the rows of `rows` as Python values, column by column; fast for some hundred rows."""
        ...

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return the requested columns that exist, in row order; memory-mapped from an Arrow file."""
        ...


class JoinedMetadata(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Metadata and added columns, row by row; a column belongs to the first part that has it."""

    parts: Sequence[Metadata]

    @property
    def row_count(self) -> int:
        return self.parts[0].row_count

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of all parts."""
        fields: dict[str, pa.Field] = {}
        for part in self.parts:
            fields = {field.name: field for field in part.schema} | fields
        names = dict.fromkeys(name for part in self.parts for name in part.schema.names)
        return pa.schema([fields[name] for name in names])

    def rows(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these ids, in their order; see Metadata."""
        wanted = self.choose(columns)
        found = [part.rows(ids, names) for part, names in self.split(wanted)]
        return pick_columns(found, wanted) if found else self.parts[0].rows(ids, [])

    def values(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> list[Column]:
        """Return the rows with these ids column by column; see Metadata."""
        wanted = self.choose(columns)
        found = {
            field.name: (field, values)
            for part, names in self.split(wanted)
            for field, values in part.values(ids, names)
        }
        return [found[name] for name in wanted]

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return whole columns; see Metadata."""
        wanted = self.choose(names)
        found = [part.columns(some) for part, some in self.split(wanted)]
        return pick_columns(found, wanted) if found else self.parts[0].columns([])

    def choose(self, columns: Sequence[str] | None) -> list[str]:
        return list(choose_columns(self.schema, columns).names)

    def split(self, names: Sequence[str]) -> list[tuple[Metadata, list[str]]]:
        """Return each part that has some of these columns, with the columns that it has."""
        left = dict.fromkeys(names)
        found = []
        for part in self.parts:
            own = [name for name in left if name in part.schema.names]
            if own:
                found.append((part, own))
            left = {name: None for name in left if name not in own}
        return found


def pick_columns(tables: Sequence[pa.Table], names: Sequence[str]) -> pa.Table:
    """Return the columns of several tables of the same rows as one table, in the order of the names."""
    found = {name: table[name] for table in tables for name in table.column_names}
    fields = {field.name: field for table in tables for field in table.schema}
    return pa.Table.from_arrays([found[name] for name in names], schema=pa.schema([fields[name] for name in names]))


def column_sets(folder: Folder) -> list[str]:
    """Return the names of the sets of columns that a folder holds, in order; those that are stale are left out."""
    return [name for name in all_column_sets(folder) if not is_stale(folder, name)]


def is_stale(folder: Folder, name: str) -> bool:
    return folder.exists(f"{COLUMNS_FOLDER}/{name}/{STALE}")


def mark_columns_stale(folder: Folder) -> None:
    """Note in each set of columns that embeddings change in place, so the columns no longer describe these rows."""
    for name in column_sets(folder):
        folder.write_json(f"{COLUMNS_FOLDER}/{name}/{STALE}", {"why": "embeddings have changed in place"})


def all_column_sets(folder: Folder) -> list[str]:
    if not folder.exists(COLUMNS_FOLDER):
        return []
    with folder.answering():
        found = folder.fs.ls(folder.path(COLUMNS_FOLDER), detail=False)
    names = sorted(PurePosixPath(str(name)).name for name in found)
    places = {name: f"{COLUMNS_FOLDER}/{name}" for name in names}
    return [name for name in names if folder.is_folder(places[name]) and folder.names(places[name], ".parquet")]


def with_columns(folder: Folder, own: Metadata | None) -> Metadata | None:
    """Return metadata with the columns next to it; a set of other rows, unfinished or stale, is left out."""
    parts: list[Metadata] = [] if own is None else [own]
    for name in all_column_sets(folder):
        if is_stale(folder, name):
            logger.warning(
                "%s was made before embeddings changed: its columns are left out; run the command that made them again",
                folder.path(f"{COLUMNS_FOLDER}/{name}"),
            )
            continue
        added = ParquetMetadata(ParquetFiles(folder, f"{COLUMNS_FOLDER}/{name}"))
        if parts and added.row_count != parts[0].row_count:
            logger.warning(
                "%s has %s, the metadata %s: its columns are left out; run the command that made them again",
                folder.path(f"{COLUMNS_FOLDER}/{name}"),
                *(counted(count, "row") for count in (added.row_count, parts[0].row_count)),
            )
        else:
            parts.append(added)
    if len(parts) < 2:
        return parts[0] if parts else None
    return JoinedMetadata(parts)


def column_files(folder: Folder) -> list[str]:
    """Return the files of all sets of columns, by their names in the folder."""
    places = [f"{COLUMNS_FOLDER}/{name}" for name in column_sets(folder)]
    return [f"{place}/{name}" for place in places for name in folder.names(place, ".parquet")]


def copy_columns(source: Folder, target: Folder) -> None:
    """Copy all sets of columns of a folder into another of the same rows, and remove sets there that are gone here."""
    names = column_sets(source)
    for name in set(column_sets(target)) - set(names):
        target.remove(f"{COLUMNS_FOLDER}/{name}")
    for name in names:
        copy_column_set(source, target, name)


def copy_column_set(source: Folder, target: Folder, name: str) -> None:
    copy_parquet(source, target, f"{COLUMNS_FOLDER}/{name}")


def copy_parquet(source: Folder, target: Folder, place: str) -> None:
    """Copy the parquet files of a folder below `source`; others of an earlier copy are removed."""
    files = source.names(place, ".parquet")
    for file in files:
        with (
            target.staged(f"{place}/{file}") as staged,
            source.open(f"{place}/{file}") as original,
            staged.open("wb") as copy,
        ):
            shutil.copyfileobj(original, copy)
    for file in set(target.names(place, ".parquet")) - set(files):
        target.remove(f"{place}/{file}")
