"""Rows of metadata as JSON objects: without nulls and NaN, which clip-retrieval 2's front would show as values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.layout import IMAGE_PATH
from clip_retrieval.query.hits import has_json_form, plain
from clip_retrieval.query.pictures import WEB
from clip_retrieval.server.builds import Row
from clip_retrieval.server.config import URL
from clip_retrieval.server.indices import Generation


def read_rows(generation: Generation, ids: NDArray[np.int64], columns: tuple[str, ...]) -> list[Row]:
    """Return the rows with these ids, in their order; columns without a value are left out of a row.

    If the metadata has no column `url`, it is the image_path of rows whose picture was fetched from the web.
    """
    metadata = generation.first.metadata
    rows: list[Row] = [{} for _ in ids]
    if metadata is None or not columns or not len(ids):
        return rows
    if URL in columns and URL not in metadata.schema.names:
        kept = tuple(name for name in columns if name != URL)
        read = read_rows(generation, ids, tuple(dict.fromkeys((IMAGE_PATH, *kept))))
        return [with_url(row, kept) for row in read]
    for field, values in metadata.values(ids, columns):
        name = field.name
        if not has_json_form(field.type):
            values = [without_nothing(plain(value)) for value in values]
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[name] = value
    return rows


def with_url(row: Row, columns: tuple[str, ...]) -> Row:
    """Return these columns of a row, and the url of its picture as `url`, if it has one."""
    address = str(row.get(IMAGE_PATH, ""))
    found = {URL: address} if address.startswith(WEB) else {}
    return found | {name: value for name, value in row.items() if name in columns}


def without_nothing(value: Any) -> Any:
    """Return a JSON value without the keys of objects that have no value."""
    if isinstance(value, dict):
        return {name: without_nothing(item) for name, item in value.items() if item is not None}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value
