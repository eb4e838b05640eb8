"""Columns of several files as columns of one table: which type holds the values of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LARGEST_EXACT = 2**53  # largest range of integers that doubles hold exactly
LARGEST_INT64 = 2**63 - 1
SEVERAL_TYPES = pa.large_string()
FLOATS = ("FLOAT", "DOUBLE", "FIXED_LEN_BYTE_ARRAY")  # the last is how parquet stores half precision


def common_schema(files: Sequence[tuple[pa.Schema, pq.FileMetaData]]) -> pa.Schema:
    """Return the union of all columns in order of first appearance, each with one type.

    Numbers take the widest type if it rounds no value, which the files' footers show; other columns of several types
    become text. A file whose column is all null says nothing of its type. Strings get 64-bit offsets: a column may
    have more than 2 GiB.
    """
    types: dict[str, dict[pa.DataType, None]] = {}
    for schema in dict.fromkeys(schema.remove_metadata() for schema, _ in files):
        for field in schema:
            types.setdefault(field.name, {})[stored_type(field.type)] = None
    footers = [Columns(about) for _, about in files]
    return pa.schema(
        [(name, common_type(list(found), partial(find_range, name, footers))) for name, found in types.items()]
    )


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column of this type is kept as: dictionaries as their values, long offsets."""
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.list_(stored_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, stored_type(kind.field(i).type)) for i in range(kind.num_fields)])
    return pa.large_binary() if pa.types.is_binary(kind) else kind


def common_type(types: Sequence[pa.DataType], find: Callable[[], tuple[int, int] | None]) -> pa.DataType:
    """Return one type that holds values of all these types; `find` returns the range of the integers."""
    known = [kind for kind in types if not pa.types.is_null(kind)]
    if len(known) < 2:
        return known[0] if known else pa.null()
    if all(is_number(kind) for kind in known):
        return number_type(known, find)
    if set(known) == {pa.large_string(), pa.large_binary()}:
        return pa.large_binary()
    if all(pa.types.is_timestamp(kind) and kind.unit != "ns" for kind in known) and len({k.tz for k in known}) == 1:
        return widest(known)
    return SEVERAL_TYPES


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def number_type(types: Sequence[pa.DataType], find: Callable[[], tuple[int, int] | None]) -> pa.DataType:
    whole = [kind for kind in types if pa.types.is_integer(kind)]
    if len(whole) < len(types):
        if all(kind.bit_width <= 32 for kind in whole):  # a double holds all of these
            return pa.float64() if whole else widest(types)
        return pa.float64() if is_within(find(), LARGEST_EXACT) else SEVERAL_TYPES
    if pa.uint64() in whole and any(pa.types.is_signed_integer(kind) for kind in whole):
        return pa.int64() if is_within(find(), LARGEST_INT64) else SEVERAL_TYPES
    return widest(whole)


def is_within(found: tuple[int, int] | None, limit: int) -> bool:
    return found is not None and -limit <= found[0] and found[1] <= limit


def widest(types: Sequence[pa.DataType]) -> pa.DataType:
    schemas = [pa.schema([("x", kind)]) for kind in types]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type


class Columns:
    """The columns of a file by name, found through a dict: there may be tens of thousands."""

    def __init__(self, about: pq.FileMetaData) -> None:
        self.about = about

    @cached_property
    def places(self) -> dict[str, int]:
        return {self.about.schema.column(i).path: i for i in range(self.about.num_columns)}

    def chunks(self, name: str) -> Iterator[Any]:
        """Yield a column's footer entry for each row group."""
        place = self.places.get(name)
        if place is not None:
            yield from (self.about.row_group(group).column(place) for group in range(self.about.num_row_groups))


def find_range(name: str, files: Iterable[Columns]) -> tuple[int, int] | None:
    """Return a column's smallest and largest integer from the footers' statistics; None if one lacks them."""
    smallest = largest = 0
    for columns in files:
        for column in columns.chunks(name):
            if column.physical_type in FLOATS:
                continue
            found = column.statistics
            if found is not None and found.has_min_max:
                smallest, largest = min(smallest, found.min), max(largest, found.max)
            elif found is None or found.null_count != column.num_values:
                return None
    return smallest, largest


def choose_columns(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Return the schema of the requested columns that exist, in the requested order."""
    if columns is None:
        return schema.remove_metadata()
    known = {field.name: field for field in schema}
    return pa.schema([known[name] for name in dict.fromkeys(columns) if name in known])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast a table to the schema: missing columns become null, values of text columns become text."""
    present = dict(zip(table.column_names, table.columns, strict=True))
    columns = [
        conform_column(present[field.name], field.type) if field.name in present else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def conform_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if kind == SEVERAL_TYPES and stored_type(column.type) != kind and not pa.types.is_null(column.type):
        return as_text(column, kind)
    return column.cast(kind)


def as_text(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Return strings unchanged and other values as JSON."""
    return pa.array([value if isinstance(value, str | None) else to_json(value) for value in column.to_pylist()], kind)


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
