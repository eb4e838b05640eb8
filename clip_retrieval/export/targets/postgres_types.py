"""PostgreSQL's types for Arrow's types, and their values."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa

NUL, REPLACED = "\x00", "\ufffd"  # PostgreSQL's texts cannot hold NUL
TYPES = {
    pa.bool_(): "bool",
    pa.int8(): "int2",
    pa.uint8(): "int2",
    pa.int16(): "int2",
    pa.uint16(): "int4",
    pa.int32(): "int4",
    pa.uint32(): "int8",
    pa.int64(): "int8",
    pa.uint64(): "numeric",
    pa.float16(): "float4",
    pa.float32(): "float4",
    pa.float64(): "float8",
    pa.date32(): "date",
    pa.date64(): "date",
}


def sql_type(kind: pa.DataType) -> str:
    """Return the type of a column: a plain one, an array of plain ones, else jsonb."""
    if is_list(kind):
        item = plain_type(kind.value_type)
        return "jsonb" if item is None else f"{item}[]"
    return plain_type(kind) or "jsonb"


def plain_type(kind: pa.DataType) -> str | None:  # noqa: PLR0911 -- a table by kind
    """Return the type of a scalar; None for structs, maps and lists."""
    if kind in TYPES:
        return TYPES[kind]
    if pa.types.is_nested(kind):
        return None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytea"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if pa.types.is_time(kind):
        return "time"
    if pa.types.is_duration(kind):
        return "interval"
    return "numeric" if pa.types.is_decimal(kind) else "text"


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def dump_json(value: Any) -> str:
    """Return JSON that jsonb accepts: without NUL, NaN and infinity."""
    return json.dumps(without_nul(plain_floats(value)), ensure_ascii=False, default=str)


def without_nul(value: Any) -> Any:
    """Return a value with U+FFFD instead of NUL."""
    if isinstance(value, str):
        return value.replace(NUL, REPLACED)
    if isinstance(value, dict):
        return {without_nul(str(name)): without_nul(item) for name, item in value.items()}
    return [without_nul(item) for item in value] if isinstance(value, list | tuple) else value


def plain_floats(value: Any) -> Any:
    """Return a value with null instead of NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain_floats(item) for name, item in value.items()}
    return [plain_floats(item) for item in value] if isinstance(value, list | tuple) else value
