"""Metadata columns for an engine: names that it accepts, and values that every engine can store."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clip_retrieval.errors import ConfigError
from clip_retrieval.export.config import Engine

ID, VECTOR = "id", "vector"  # our own columns in every engine
SHOWN_COLUMNS = 20
TEXTS = (pa.string(), pa.large_string())
REPLACED_TEXT = "in texts that are not UTF-8, invalid bytes are replaced by U+FFFD"
LOST_VALUES = "values that Python cannot hold, such as dates after the year 9999, are null"


@dataclass(frozen=True)
class Column:
    """A column: its name in the metadata, its name in the engine, and its type as exported."""

    source: str
    name: str
    kind: pa.DataType


def without_dots(name: str) -> str:
    """Return a name without dots, which lead into structs and objects."""
    return name.replace(".", "_") or "_"


def for_postgres(name: str) -> str:
    """Return a name of at most 63 bytes; PostgreSQL would cut off a longer one."""
    return name.replace("\x00", "_").encode()[:63].decode("utf-8", "ignore") or "_"


def for_milvus(name: str) -> str:
    """Return a name of ASCII letters, digits and underscores."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"


NAMINGS: dict[Engine, Callable[[str], str]] = {
    "lance": without_dots,
    "pgvector": for_postgres,
    "qdrant": without_dots,
    "milvus": for_milvus,
    "parquet": str,
}


def choose_columns(schema: pa.Schema, wanted: Sequence[str] | None, engine: Engine) -> list[Column]:
    """Return the columns to export, under distinct names that the engine accepts. Raises ConfigError."""
    for name in wanted or ():
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            listed = ", ".join(sorted(schema.names)[:SHOWN_COLUMNS]) or "none"
            raise ConfigError(f"--columns {name}: there is no such column. {hint}The columns are {listed}")
    names = schema.names if wanted is None else dict.fromkeys(wanted)
    taken = {ID, VECTOR}
    columns = []
    for source in names:
        name = free_name(NAMINGS[engine](source), taken, NAMINGS[engine])
        taken.add(name.lower())  # to SQL engines and DuckDB, A and a are the same column
        columns.append(Column(source, name, stored_kind(schema.field(source).type)))
    return columns


def free_name(name: str, taken: set[str], naming: Callable[[str], str]) -> str:
    """Return a free name: with `metadata_` before it if it is one of ours, with a number after it if it is taken."""
    if name.lower() in (ID, VECTOR):
        name = naming(f"metadata_{name}")
    found, number = name, 1
    while found.lower() in taken:
        number += 1
        end = f"_{number}"
        room = len(naming(name + "x" * len(end))) - len(end)  # less if the length of names is limited
        found = name[: max(1, min(len(name), room))] + end
    return found


def stored_kind(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column as exported: values instead of dictionaries, text for columns with only nulls."""
    if pa.types.is_dictionary(kind):
        return stored_kind(kind.value_type)
    return pa.large_string() if pa.types.is_null(kind) else kind


def tidy(table: pa.Table, columns: Sequence[Column], odd: Counter[str]) -> pa.Table:
    """Return the columns under their names in the engine; counts texts that had to be changed."""
    arrays = [tidy_column(table[column.source], column.kind, odd) for column in columns]
    return pa.Table.from_arrays(arrays, schema=pa.schema([(column.name, column.kind) for column in columns]))


def tidy_column(values: pa.ChunkedArray, kind: pa.DataType, odd: Counter[str]) -> pa.ChunkedArray:
    values = values.cast(kind) if values.type != kind else values
    return pa.chunked_array([mend(chunk, odd) for chunk in values.chunks], kind)


def mend(array: pa.Array, odd: Counter[str]) -> pa.Array:
    """Return an array whose texts are all UTF-8; most are, and are not copied."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return mend_texts(array, odd)
    return array


def mend_texts(array: pa.Array, odd: Counter[str]) -> pa.Array:
    kind = array.type
    if kind in TEXTS:
        raw = array.view(pa.large_binary() if kind == pa.large_string() else pa.binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "replace") for value in raw]
        odd[REPLACED_TEXT] += sum(
            text is not None and text.encode() != value for text, value in zip(texts, raw, strict=True)
        )
        return pa.array(texts, kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return type(array).from_arrays(array.offsets, mend_texts(array.values, odd), type=kind, mask=array.is_null())
    if pa.types.is_struct(kind):
        fields = [mend_texts(array.field(place), odd) for place in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=array.is_null())
    return array


def python_values(column: pa.ChunkedArray, odd: Counter[str]) -> list[Any]:
    """Return Python values, times in microseconds; values that Python cannot hold are null, and counted."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    if pa.types.is_duration(column.type) and column.type.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        return [python_value(value, odd) for value in column]
    return found


def python_value(value: pa.Scalar, odd: Counter[str]) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        odd[LOST_VALUES] += 1
        return None
