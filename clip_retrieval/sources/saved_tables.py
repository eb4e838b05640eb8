"""Parts of tables as JSON: a block names each of its tables once, with what opening that table found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

from clip_retrieval.sources.csv_table import CsvTable
from clip_retrieval.sources.datasets import ArrowTable
from clip_retrieval.sources.json_lines import JsonTable
from clip_retrieval.sources.parquet import ParquetTable
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.saving import Codec, Restored
from clip_retrieval.sources.tables import Table, TablePart, TableSource
from clip_retrieval.sources.types import Failure
from clip_retrieval.sources.urls import UrlSource

TABLES: dict[str, type[Table]] = {"parquet": ParquetTable, "csv": CsvTable, "json": JsonTable, "arrow": ArrowTable}
NAMES = {kind: name for name, kind in TABLES.items()}


def pack_parts(parts: Sequence[TablePart]) -> dict[str, Any]:
    tables = {id(part.table): part.table for part in parts if part.table is not None}
    places = {number: place for place, number in enumerate(tables)}
    return {
        "tables": [{"kind": NAMES[type(table)], **asdict(table)} for table in tables.values()],
        "parts": [
            (
                part.name,
                None if part.table is None else places[id(part.table)],
                part.start,
                part.stop,
                None if part.damage is None else astuple(part.damage),
            )
            for part in parts
        ],
    }


def unpack_parts(packed: Any) -> list[TablePart]:
    tables = [TABLES[about.pop("kind")](**about) for about in packed["tables"]]
    return [
        TablePart(
            name,
            None if place is None else tables[place],
            start,
            stop,
            None if damage is None else Failure(*damage),
        )
        for name, place, start, stop, damage in packed["parts"]
    ]


def restore_tables(saved: Restored[TablePart]) -> Source:
    tables = TableSource(saved.config, saved.items, saved.sample_count)
    return UrlSource(tables) if saved.config.input_format == "urls" else tables


CODEC = Codec(
    items_of=lambda source: source.tables.parts if isinstance(source, UrlSource) else source.parts,
    pack=pack_parts,
    unpack=unpack_parts,
    restore=restore_tables,
)
