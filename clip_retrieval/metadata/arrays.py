"""Arrow arrays: made without pandas, which pyarrow imports for Python values in 0.4 s, and checked row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NUMBERS: dict[pa.DataType, Any] = {pa.int64(): np.int64, pa.float64(): np.float64, pa.bool_(): np.bool_}
MOST_BYTES = 2**31 - 1  # offsets have 32 bits


class DamageError(ValueError):
    """An array's offsets point outside of its buffers."""


def number_array(values: NDArray[Any]) -> pa.Array:
    """Return an array of these numbers, without a copy."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return an array of strings; None is null."""
    return make_array(texts, pa.string())


def make_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of Python values of a kind that we write: a flag, number, string or bytes, or a list of such.

    None is null. If all strings together are too long for one array, it has several chunks.
    """
    try:
        return build_array(values, kind)
    except OverflowError:
        return pa.array(values, kind)


def build_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array without pandas; raises OverflowError if a number or the sum of the lengths is too large."""
    is_there = pa.py_buffer(np.packbits(np.array([value is not None for value in values], bool), bitorder="little"))
    if pa.types.is_list(kind):
        items = build_array([item for value in values if value is not None for item in value], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [is_there, offsets_of(values)], children=[items])
    if kind in (pa.string(), pa.binary()):
        encoded = [value.encode("utf-8") if isinstance(value, str) else value or b"" for value in values]
        return pa.Array.from_buffers(
            kind, len(values), [is_there, offsets_of(encoded), pa.py_buffer(b"".join(encoded))]
        )
    if pa.types.is_fixed_size_binary(kind):
        data = pa.py_buffer(b"".join(bytes(kind.byte_width) if value is None else value for value in values))
    else:
        numbers = np.array([0 if value is None else value for value in values], NUMBERS[kind])
        data = pa.py_buffer(np.packbits(numbers, bitorder="little") if kind == pa.bool_() else numbers)
    return pa.Array.from_buffers(kind, len(values), [is_there, data])


def make_table(records: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of these records; what one lacks is null."""
    arrays = [make_array([record.get(field.name) for record in records], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def empty_table(schema: pa.Schema) -> pa.Table:
    """Return a table without rows; pyarrow's own `Schema.empty_table` imports pandas."""
    return pa.Table.from_batches([], schema)


def offsets_of(values: Sequence[Any]) -> pa.Buffer:
    """Return where each value begins, and the end of the last one; None has no length."""
    offsets = np.cumsum([0, *(len(value or ()) for value in values)])
    if offsets[-1] > MOST_BYTES:
        raise OverflowError(f"{offsets[-1]:,} bytes or items are too many for one column of a row group")
    return pa.py_buffer(offsets.astype(np.int32))


def check_values(values: pa.Array, rows: NDArray[np.int64]) -> None:
    """Raise DamageError if these rows of a mapped array are outside of its buffers."""
    kind = values.type
    if not len(rows):
        return
    if pa.types.is_struct(kind):
        for field in range(kind.num_fields):
            check_values(values.field(field), rows)
    elif has_offsets(kind):
        starts, stops = read_offsets(values, rows)
        if pa.types.is_nested(kind):
            check_offsets(starts, stops, len(values.values))
            check_values(values.values, join_ranges(starts, stops))
        else:
            data = values.buffers()[2]
            check_offsets(starts, stops, 0 if data is None else data.size)
    elif pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        values.validate(full=True)  # maps and lists of fixed size; dictionaries are not in our files


def has_offsets(kind: pa.DataType) -> bool:
    texts = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    return kind in texts or bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def read_offsets(values: pa.Array, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where these rows begin and end among the bytes or items of their column."""
    kind, buffer = values.type, values.buffers()[1]
    is_large = pa.types.is_large_list(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    form = np.dtype(np.int64 if is_large else np.int32)
    count = 0 if buffer is None else buffer.size // form.itemsize
    places = rows + values.offset
    if places.max() + 1 >= count:
        raise DamageError("columns are shorter than their table")
    offsets = np.frombuffer(buffer, form, count)
    return offsets[places], offsets[places + 1]


def check_offsets(starts: NDArray[Any], stops: NDArray[Any], limit: int) -> None:
    if (starts < 0).any() or (stops < starts).any() or (stops > limit).any():
        raise DamageError("rows outside of their column")


def join_ranges(starts: NDArray[Any], stops: NDArray[Any]) -> NDArray[np.int64]:
    """Return the numbers of all ranges start..stop, one range after the other."""
    sizes = (stops - starts).astype(np.int64)
    before = np.cumsum(sizes) - sizes
    numbers: NDArray[np.int64] = np.arange(int(sizes.sum()), dtype=np.int64) + np.repeat(starts - before, sizes)
    return numbers
