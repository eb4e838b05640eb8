"""Hits as rows of a table: ids and scores joined with their metadata, and their json form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from clip_retrieval.metadata import Metadata, number_array
from clip_retrieval.query.unknown_column import name_apart
from clip_retrieval.search.results import SearchResult

ROWS_AT_ONCE = 1000
OWN_NAMES = ("rank", "id", "similarity", "surprise", "picture", "problem")


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows as Python values; memory holds ROWS_AT_ONCE of them."""
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows as json values; NaN and infinity become null, values without a json form text."""
    others = [field.name for field in table.schema if not has_json_form(field.type)]
    for row in rows_of(table):
        yield row | {name: plain(row[name]) for name in others}


def has_json_form(kind: pa.DataType) -> bool:
    """Say whether every value of a column's type is already a json value."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    )


def plain(value: Any) -> Any:
    """Return a value for json: NaN and infinity become null, dates and bytes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def join_metadata(metadata: Metadata | None, found: SearchResult) -> pa.Table:
    """Return rank, id and similarity of the hits, and their metadata; a column named as one of ours is renamed."""
    columns: dict[str, Any] = {
        "rank": number_array(np.arange(1, len(found.ids) + 1)),
        "id": number_array(found.ids),
        "similarity": number_array(found.scores),
    }
    if metadata is not None:
        rows = metadata.rows(found.ids)
        theirs = frozenset(rows.column_names)  # searching a list for each column takes hours for 100,000 columns
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            columns[name_apart(name, theirs) if name in OWN_NAMES else name] = column
    return pa.table(columns)
