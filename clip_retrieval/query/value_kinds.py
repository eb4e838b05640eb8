"""Kinds of column values in the user's words; separate from DuckDB, which not every command loads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa

from clip_retrieval.query.unknown_column import ROW_ID, name_apart


def kind_in_words(kind: pa.DataType) -> str:
    """Return what a column of an Arrow type holds, such as "text" or "lists of numbers"."""
    if pa.types.is_dictionary(kind):
        return kind_in_words(kind.value_type)
    if is_list(kind):
        return f"lists of {kind_in_words(kind.value_type)}"
    words = {
        "text": is_text(kind),
        "named fields": pa.types.is_struct(kind) or pa.types.is_map(kind),
        "true or false": pa.types.is_boolean(kind),
        "dates or times": pa.types.is_temporal(kind),
        "numbers": pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind),
        "no values": pa.types.is_null(kind),
    }
    return next((word for word, is_this in words.items() if is_this), "bytes")


def what_columns_hold(used: Mapping[str, pa.DataType], metadata_columns: Collection[str]) -> str:
    """Say what the columns of a condition hold and how to compare them; empty if there are none."""
    said = []
    for name, kind in used.items():
        if name != ROW_ID:
            said.append(f"column {name} holds {kind_in_words(kind)}; {advice_about(name, kind)}")
        elif name in metadata_columns:
            theirs = name_apart(name, metadata_columns)
            said.append(f'{name} is the row\'s id, a number; the metadata column of this name is "{theirs}", quoted')
        else:
            said.append(f"{name} is the row's id, a number")
    return ". ".join(said)


def advice_about(name: str, kind: pa.DataType) -> str:
    """Return how a condition can be written over a column of this kind."""
    if is_list(kind):
        return f"write list_contains({name}, VALUE)"
    match kind_in_words(kind):
        case "text":
            return f"write texts in single quotes, or numbers as try_cast({name} as double) > 5"
        case "numbers":
            return "compare it with a number, without quotes"
        case "dates or times":
            return "compare it with a date such as '2024-12-31'"
        case "true or false":
            return f"write {name} or not {name}"
        case _:
            return f"write {name} is null or {name} is not null"


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
