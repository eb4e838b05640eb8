"""Finds what prevents writing an index folder, without writing anything."""

from __future__ import annotations

import os
from pathlib import Path

from clip_retrieval.errors import StorageError
from clip_retrieval.storage import Folder


def check_no_file(target: Folder) -> None:
    """Raise StorageError if a file has the name of the folder, or of one above it."""
    nearest = find_nearest(target)
    if nearest is not None and nearest.is_file():
        name = target.url if nearest == Path(target.root) else nearest
        raise StorageError(f"{name} is a file; name a folder")


def find_obstacle(target: Folder) -> str | None:
    """Say why a folder cannot be written to; None if nothing is known, as for every remote store."""
    nearest = find_nearest(target)
    if nearest is None or os.access(nearest, os.W_OK | os.X_OK):
        return None
    return f"cannot write to {target.url}: {nearest} cannot be written to; name another folder"


def find_nearest(target: Folder) -> Path | None:
    """Return the folder or its nearest existing parent; None on a store."""
    if not target.is_local:
        return None
    root = Path(target.root)
    return next(path for path in (root, *root.parents) if path.exists())
