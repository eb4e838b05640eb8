"""Arrow batches as rows of plain Python values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from clip_retrieval.blobs import Lost
from clip_retrieval.errors import SourceError, one_line
from clip_retrieval.sources.tables import Kind

MOST_BYTES = 16 << 20  # per slice of a batch converted to Python values at once


def check_names(url: str, schema: pa.Schema) -> None:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise SourceError(f"{url} has two columns of the name {twice[0]}; rename one")


def kinds_of(schema: pa.Schema) -> dict[str, Kind]:
    """Return the kind of each column: could it hold pictures or captions?"""
    return {field.name: kind_of(field.type) for field in schema}


def types_of(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def kind_of(held: Any) -> Kind:
    if pa.types.is_dictionary(held):
        held = held.value_type
    if is_text(held):
        return "text"
    if is_bytes(held):
        return "bytes"
    if pa.types.is_struct(held):
        index = held.get_field_index("bytes")
        return "struct" if index >= 0 and is_bytes(held.field(index).type) else "other"
    is_list = pa.types.is_list(held) or pa.types.is_large_list(held)
    return "texts" if is_list and is_text(held.value_type) else "other"


def is_text(held: Any) -> bool:
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_string_view(held))


def is_bytes(held: Any) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(held) for test in tests)


def rows_of(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a batch as {column: value}; missing columns are None."""
    names = set(batch.schema.names)
    step = max(1, MOST_BYTES * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, step):
        piece = batch.slice(start, step)
        held = [values(piece.column(name)) if name in names else [None] * len(piece) for name in columns]
        for number in range(len(piece)):
            yield {name: column[number] for name, column in zip(columns, held, strict=True)}


def values(column: Any) -> list[Any]:
    """Return the column as Python values; a value that cannot be converted, such as invalid UTF-8, is Lost."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):
        return [value_at(column, number) for number in range(len(column))]


def value_at(column: Any, number: int) -> Any:
    try:
        return column[number].as_py()
    except UnicodeDecodeError as error:
        return Lost("encoding", f"a text is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return Lost("unreadable_value", one_line(error))
