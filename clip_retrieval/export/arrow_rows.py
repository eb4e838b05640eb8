"""Exported rows as an Arrow table with id, vector and metadata, and back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.export.columns import ID, VECTOR, python_values
from clip_retrieval.export.source import Block, to_precision
from clip_retrieval.export.target import Fetched, Setup
from clip_retrieval.metadata import number_array


def make_schema(setup: Setup, dtype: np.dtype[Any]) -> pa.Schema:
    """Return the columns of a table: vectors are lists of fixed size."""
    return pa.schema(
        [
            pa.field(ID, pa.int64()),
            pa.field(VECTOR, pa.list_(pa.from_numpy_dtype(dtype), setup.dim)),
            *((column.name, column.kind) for column in setup.columns),
        ]
    )


def make_table(block: Block, schema: pa.Schema) -> pa.Table:
    """Return the rows of a block, vectors in the precision of the schema."""
    kind = schema.field(VECTOR).type
    flat = to_precision(block.vectors, np.dtype(kind.value_type.to_pandas_dtype())).reshape(-1)
    vectors = pa.FixedSizeListArray.from_arrays(number_array(flat), kind.list_size)
    return pa.Table.from_arrays([number_array(block.ids), vectors, *block.metadata.columns], schema=schema)


def vectors_of(column: pa.Array, dim: int) -> NDArray[np.float32]:
    """Return a column of lists of fixed size as rows [n, d]."""
    flat = column.flatten().to_numpy(zero_copy_only=False)
    rows: NDArray[np.float32] = np.asarray(flat, np.float32).reshape(-1, dim)
    return rows


def as_fetched(table: pa.Table, dim: int) -> Fetched:
    """Return a table with id, vector and metadata as fetched rows."""
    names = [name for name in table.column_names if name not in (ID, VECTOR)]
    values = [python_values(table[name], Counter()) for name in names]
    vectors = vectors_of(table[VECTOR].combine_chunks(), dim)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)] if names else [{}] * len(table)
    return Fetched(table[ID].to_numpy(), vectors, rows)
