"""Arrow arrays: made without pandas, which `pa.array` imports in 0.4 s, and checked row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class DamageError(ValueError):
    """An array's offsets lead out of its buffers."""


def number_array(values: NDArray[Any]) -> pa.Array:
    """Return an array of these numbers, without a copy."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return an array of strings; None is null."""
    encoded = [None if text is None else text.encode("utf-8") for text in texts]
    offsets = np.cumsum([0, *(len(text or b"") for text in encoded)], dtype=np.int32)
    is_valid = np.packbits(np.array([text is not None for text in encoded], bool), bitorder="little")
    buffers = [pa.py_buffer(is_valid), pa.py_buffer(offsets), pa.py_buffer(b"".join(text or b"" for text in encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def check_values(values: pa.Array, rows: NDArray[np.int64]) -> None:
    """Raise DamageError where these rows of a mapped array lie outside of its buffers."""
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
        raise DamageError("rows that lie outside of their column")


def join_ranges(starts: NDArray[Any], stops: NDArray[Any]) -> NDArray[np.int64]:
    """Return the numbers of all ranges start..stop, one range after the other."""
    sizes = (stops - starts).astype(np.int64)
    before = np.cumsum(sizes) - sizes
    numbers: NDArray[np.int64] = np.arange(int(sizes.sum()), dtype=np.int64) + np.repeat(starts - before, sizes)
    return numbers
