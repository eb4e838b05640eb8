"""Rows of metadata by id: row r over metadata/*.parquet in name order is the sample with index id r."""

from __future__ import annotations

import logging

from clip_retrieval.checksums import checked_at_opening, find_damage_beside
from clip_retrieval.errors import StorageError
from clip_retrieval.layout import COLUMNS_FOLDER, METADATA_ARROW, METADATA_FOLDER
from clip_retrieval.metadata.arrays import empty_table, make_array, make_table, number_array, text_array
from clip_retrieval.metadata.arrow import ArrowMetadata, read_sources
from clip_retrieval.metadata.joined import Metadata, column_sets, with_columns
from clip_retrieval.metadata.parquet import (
    RECORDS_AT_ONCE,
    Column,
    ParquetFiles,
    ParquetMetadata,
    concat,
    open_parquet,
    open_writer,
    read_records,
    read_through,
)
from clip_retrieval.storage import Folder

__all__ = [
    "RECORDS_AT_ONCE",
    "Column",
    "Metadata",
    "concat",
    "count_rows",
    "empty_table",
    "make_array",
    "make_table",
    "number_array",
    "open_metadata",
    "open_parquet",
    "open_writer",
    "other_columns",
    "read_records",
    "read_through",
    "text_array",
]

logger = logging.getLogger(__name__)


def open_metadata(folder: Folder) -> Metadata | None:
    """Open the metadata of an embeddings or index folder, with columns added later; None if there is none."""
    return with_columns(folder, open_own(folder))


def open_own(folder: Folder) -> Metadata | None:
    """Open the metadata that inference wrote; None if there is none.

    metadata.arrow is used if it is whole and was made of the parquet files next to it, else those files; without them,
    metadata/*.arrow (as clip-retrieval 2 has them for `--use_arrow`). On a store the parquet files are better, since
    only the requested row groups are fetched: Arrow files are fetched whole.
    """
    sizes = folder.sizes(METADATA_FOLDER, ".parquet")
    if folder.exists(METADATA_ARROW) and (folder.is_local or not sizes):
        opened = open_arrow(folder, sizes)
        if opened is not None:
            return opened
    if sizes:
        return ParquetMetadata(ParquetFiles(folder))
    names = folder.names(METADATA_FOLDER, ".arrow")
    return ArrowMetadata(folder, [f"{METADATA_FOLDER}/{name}" for name in names]) if names else None


def open_arrow(folder: Folder, sizes: dict[str, int]) -> ArrowMetadata | None:
    """Open metadata.arrow; None if it cannot be used, but the parquet files can.

    Raises StorageError if it cannot be used and there are no parquet files.
    """
    try:
        damage = find_damage_beside(folder, checked_at_opening(folder))
        if damage is not None:
            raise damage
        opened = ArrowMetadata(folder, [METADATA_ARROW])
    except StorageError as error:
        if not sizes:
            raise
        logger.warning("%s; the parquet files next to it are read, which is slower", error)
        return None
    sources = read_sources(opened.schema)
    if sizes and sources != sizes:
        logger.warning(
            "%s was not made of the parquet files next to it, which are read instead; `clip-retrieval index` makes it "
            "again",
            folder.path(METADATA_ARROW),
        )
        return None
    return opened


def count_rows(folder: Folder) -> int | None:
    """Return the number of metadata rows of a folder; None if it has no metadata."""
    files = ParquetFiles(folder)
    if files.footers:
        return files.row_count
    metadata = open_metadata(folder)
    return None if metadata is None else metadata.row_count


def other_columns(folder: Folder, name: str) -> dict[str, str]:
    """Return where each column of a folder is, without those of one set of added columns."""
    own = open_own(folder)
    found = {} if own is None else dict.fromkeys(own.schema.names, METADATA_FOLDER)
    for other in column_sets(folder):
        if other != name:
            place = f"{COLUMNS_FOLDER}/{other}"
            found |= dict.fromkeys(ParquetFiles(folder, place).schema.names, place)
    return found
