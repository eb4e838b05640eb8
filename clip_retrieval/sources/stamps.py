"""Tells whether a local file is still the one that was listed. Files of stores are not compared."""

from __future__ import annotations

from clip_retrieval.blobs import Stamp, open_raw, stamp_of
from clip_retrieval.paths import local_path


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
    except OSError:  # whoever opens it says why
        return ""
    return "" if about is None else f"{about.st_size}-{about.st_mtime_ns}"
