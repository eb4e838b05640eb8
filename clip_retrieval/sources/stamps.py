"""Tells whether a local file is still the one that was listed. Files of stores are not compared."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import TypeVar

from clip_retrieval.blobs import Stamp, open_raw, stamp_of
from clip_retrieval.paths import local_path
from clip_retrieval.sources.types import Failure

T = TypeVar("T")


def stamp_at(url: str) -> Stamp | None:
    """Return the stamp of a local file; None on a store. Raises OSError."""
    if local_path(url) is None:
        return None
    with open_raw(url) as file:
        return stamp_of(file)


def version_at(url: str) -> str:
    """Return size and time of a local file, the same on all machines; empty on a store."""
    path = local_path(url)
    try:
        about = None if path is None else path.stat()
    except OSError:  # the code that opens it says why
        return ""
    return "" if about is None else f"{about.st_size}-{about.st_mtime_ns}"


def unless_replaced(url: str, version: str, rows: Iterator[T]) -> Iterator[T] | None:
    """Return the rows of a file; None if it is no longer that version.

    It is compared again once it is open: an open file stays the same when another one takes its name.
    """
    if not version:
        return rows
    expected = version, ""  # if the file is gone, the code that opens it says so
    if version_at(url) not in expected:
        return None
    begun = chain(list(islice(rows, 1)), rows)
    return begun if version_at(url) in expected else None


def lost_rows(url: str, start: int, stop: int | None) -> Failure:
    which = f"rows from {start} on" if stop is None else f"rows {start} to {stop - 1}"
    detail = f"{which} are left out: the file was replaced or changed since it was listed; embed it into a new folder"
    return Failure.of_shard(url, "replaced", detail)
