"""Tells whether a file is still the one that was listed, on stores as far as these say when it changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import IO, Any, TypeVar

from clip_retrieval.blobs import Stamp, open_raw, open_store, stamp_of, store_errors
from clip_retrieval.paths import is_on_store, local_path
from clip_retrieval.sources.types import Failure

T = TypeVar("T")
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
WEB = ("http://", "https://")  # servers of one address may differ in what they say


def stamp_at(url: str) -> Stamp | str:
    """Return the stamp of a local file, or the version of one on a store. Raises OSError."""
    if local_path(url) is None:
        return version_at(url)
    with open_raw(url) as file:
        return stamp_of(file)


def has_stamp(url: str, file: IO[bytes], stamp: Stamp | str | None) -> bool:
    """Say whether an open file is the one that had this stamp, as far as that is known."""
    if not stamp:
        return True
    return stamp_of(file) == stamp if isinstance(stamp, tuple) else version_at(url) in (stamp, "")


def version_at(url: str) -> str:
    """Return size and time of a file, or a store's mark of its content; the same on all machines, empty if not known.

    It takes one request of a store.
    """
    try:
        path = local_path(url)
        if path is not None:
            about = path.stat()
            return f"{about.st_size}-{about.st_mtime_ns}"
        return version_on_store(url) if is_on_store(url) and not url.startswith(WEB) else ""
    except (OSError, ValueError, ImportError):  # the code that opens it says why
        return ""


def version_on_store(url: str) -> str:
    with store_errors(url):
        fs, path = open_store(url)
        fs.invalidate_cache(path.rpartition("/")[0])  # a listing may be older than the file
        info = fs.info(path)
    mark = mark_of(info)
    return mark and f"{info.get('size')}-{mark}"


def mark_of(info: Mapping[str, Any]) -> str:
    """Return the first field of a store's listing that changes whenever the file does; empty if there is none."""
    return next((str(info[name]) for name in STAMPS if info.get(name) is not None), "")


def unless_replaced(url: str, version: str, rows: Iterator[T]) -> Iterator[T] | None:
    """Return the rows of a file; None if it is no longer that version.

    It is compared again once it is open: an open file stays the same when another one takes its name.
    """
    if not version:
        return rows
    expected = version, ""  # if the file is gone, the code that opens it says so
    if local_path(url) is not None and version_at(url) not in expected:  # of a store, one request is enough
        return None
    begun = chain(list(islice(rows, 1)), rows)
    return begun if version_at(url) in expected else None


def lost_rows(url: str, start: int, stop: int | None) -> Failure:
    which = f"rows from {start} on" if stop is None else f"rows {start} to {stop - 1}"
    detail = f"{which} are left out: the file was replaced or changed since it was listed; embed it into a new folder"
    return Failure.of_shard(url, "replaced", detail)
