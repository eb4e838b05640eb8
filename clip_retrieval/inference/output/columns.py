"""Rows to a parquet file of metadata, in flat memory: written as they come, or spooled until every value was seen.

A json field may be a number in one row and a word in another. Its column's type is decided over all rows of the
partition: the type that all values share, else text, with every value that was not text in its json form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from clip_retrieval.inference.output.groups import GroupWriter
from clip_retrieval.inference.types import Row
from clip_retrieval.layout import (
    CAPTION,
    FRAME,
    IMAGE_PATH,
    PAGE,
    SHARD,
    SHARD_COLUMNS,
    SHARD_OFFSET,
    SHARD_SIZE,
    TIME,
    VIDEO,
)
from clip_retrieval.media.places import is_document, split_place
from clip_retrieval.metadata import make_array
from clip_retrieval.words import clean

LARGEST_INT = 2**63 - 1
EXACT_FLOAT_INT = 2**53


class Columns(NamedTuple):
    """The columns of a run: ours, and whether fields of json may join them."""

    own: Sequence[str]
    has_fields: bool = True


class MetadataWriter:
    """Writes rows to a parquet file; `finish` completes it."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.spool_path = path, path.with_name(f"{path.name}-spool")
        self.own_columns = list(columns.own)
        self.spool = self.spool_path.open("w", encoding="utf-8") if columns.has_fields else None
        self.kinds: dict[str, str] = {}  # json field -> kind of all its values so far
        self.groups: GroupWriter | None = None  # with fields of json, once all are known

    def append(self, rows: Sequence[Row]) -> None:
        for row in rows:
            record = {name: value for name, value in own_values(row).items() if name in self.own_columns}
            if self.spool is None:
                self.add(record)
                continue
            for name, value in (row.metadata or {}).items():
                column = self.column_of(name, value, record)
                if column is not None:
                    record[column] = value
                    self.kinds[column] = merge_kinds(self.kinds.get(column, "null"), kind_of(value))
            self.spool.write(json.dumps(record))
            self.spool.write("\n")

    def column_of(self, name: str, value: object, record: dict[str, Any]) -> str | None:
        """Return a json field's column; a field with our column's name is left out if equal, else renamed."""
        if name in self.own_columns and record.get(name) == value:
            return None
        while name in self.own_columns or name in record:
            name = f"json.{name}"
        return name

    def add(self, record: dict[str, Any]) -> None:
        if self.groups is None:
            self.groups = self.open_groups()
        self.groups.add(record)

    def open_groups(self) -> GroupWriter:
        schema = pa.schema(
            [pa.field(name, OWN_TYPES[name]) for name in self.own_columns]
            + [pa.field(clean(name), ARROW_TYPES[kind]) for name, kind in self.kinds.items()]
        )
        return GroupWriter(self.path, schema, self.table)

    def finish(self) -> None:
        """Write what was spooled, now that the types of all fields are known, and the rest."""
        if self.spool is not None:
            self.spool.close()
            with self.spool_path.open(encoding="utf-8") as spool:
                for line in spool:
                    self.add(json.loads(line))
            self.spool_path.unlink()
        self.groups = self.groups or self.open_groups()
        self.groups.finish()

    def close(self) -> None:
        for file in (self.spool, self.groups):
            if file is not None:
                file.close()

    def table(self, records: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        kinds = {**dict.fromkeys(self.own_columns, "own"), **self.kinds}
        arrays = [
            make_array([as_kind(record.get(name), kind) for record in records], field.type)
            for (name, kind), field in zip(kinds.items(), schema, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=schema)


OWN_TYPES = {
    IMAGE_PATH: pa.string(),
    CAPTION: pa.string(),
    SHARD: pa.string(),
    SHARD_OFFSET: pa.int64(),
    SHARD_SIZE: pa.int64(),
    PAGE: pa.int64(),
    VIDEO: pa.string(),
    TIME: pa.float64(),
    FRAME: pa.int64(),
}
ARROW_TYPES = {
    "null": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "ints": pa.list_(pa.int64()),
    "floats": pa.list_(pa.float64()),
    "long": pa.int64(),
    "nulls": pa.list_(pa.string()),
    "mixed": pa.string(),
}
KIND_OF_TYPE = {type(None): "null", bool: "bool", float: "float", str: "text"}
KIND_OF_LIST = {"text": "texts", "int": "ints", "long": "ints", "float": "floats", "null": "nulls"}
WIDER = {
    frozenset(("int", "float")): "float",
    frozenset(("int", "long")): "long",
    frozenset(("ints", "floats")): "mixed",
    **{frozenset(("nulls", kind)): kind for kind in ("texts", "ints", "floats")},
}


def own_values(row: Row) -> dict[str, Any]:
    origin = row.origin
    return {
        IMAGE_PATH: row.image_path,
        CAPTION: row.caption,
        SHARD: origin.shard if origin else None,
        SHARD_OFFSET: origin.offset if origin else None,
        SHARD_SIZE: origin.size if origin else None,
        **place_values(row),
    }


def place_values(row: Row) -> dict[str, Any]:
    """Return the columns of a picture within a file."""
    found = split_place(row.image_path or "")
    if found is None:
        return {}
    file, place = found
    return {PAGE: place} if is_document(file) else {VIDEO: file, TIME: place / 1000, FRAME: row.frame}


def own_columns(*, image: bool, text: bool, shards: bool, places: Sequence[str] = ()) -> list[str]:
    """Return our columns in the order of the contract."""
    return [
        *([IMAGE_PATH] if image else []),
        *([CAPTION] if text else []),
        *(SHARD_COLUMNS if shards else ()),
        *places,
    ]


def kind_of(value: object) -> str:
    """Return the narrowest kind for one value. `long` is an integer that a float would round."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if abs(value) <= EXACT_FLOAT_INT else "long" if abs(value) <= LARGEST_INT else "mixed"
    if isinstance(value, list):
        inner = "null"
        for item in value:
            inner = merge_kinds(inner, kind_of(item))
        return KIND_OF_LIST.get(inner, "mixed")
    return KIND_OF_TYPE.get(type(value), "mixed")


def merge_kinds(first: str, second: str) -> str:
    """Return the narrowest kind that holds values of both without losing any."""
    if first == second or second == "null":
        return first
    if first == "null":
        return second
    return WIDER.get(frozenset((first, second)), "mixed")


def as_kind(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "mixed":
        return clean(value) if isinstance(value, str) else json.dumps(value)
    if kind in ("own", "text"):
        return clean(value) if isinstance(value, str) else value
    if kind == "texts":
        return [None if item is None else clean(item) for item in value]
    if kind == "float":
        return float(value)
    return value
