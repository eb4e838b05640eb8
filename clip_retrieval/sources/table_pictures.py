"""Reads one picture of a table again, by the image_path of its row: FILE#COLUMN/ROW."""

from __future__ import annotations

import re

from clip_retrieval.sources.datasets import part_of
from clip_retrieval.sources.parquet import PARQUET_SUFFIXES, parts_of
from clip_retrieval.sources.types import Failure

PLACE = re.compile(r"(?P<url>.+(?:\.arrow|\.parquet|\.pq|\.parq))#(?P<column>.+)/(?P<row>\d+)", re.DOTALL)


def is_in_table(image_path: str) -> bool:
    return PLACE.fullmatch(image_path) is not None


def read_picture(image_path: str) -> bytes:
    """Return the bytes of a picture in a table; raises OSError if they are gone."""
    place = PLACE.fullmatch(image_path)
    assert place is not None
    url, column, row = place["url"], place["column"], int(place["row"])
    parts = parts_of(url)[0] if url.endswith(PARQUET_SUFFIXES) else [part_of(url)]
    table = parts[0].table if parts else None
    items = [] if table is None else list(table.rows(row, row + 1, [column]))
    for item in items:
        value = None if isinstance(item, Failure) else item[1][column]
        value = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(value, bytes):
            return value
    raise OSError(f"{url} has no picture in row {row} any more")
