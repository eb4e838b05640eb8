"""Files of a build that are complete or absent after a loss of power, as after a killed process.

A rename may reach the disk before the bytes of the file do: after a loss of power the name would be there, and the
file empty or full of zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_retrieval.storage import Folder


@contextmanager
def staged_on_disk(folder: Folder, name: str) -> Iterator[Path]:
    """Yield a path to write to; the file is on the disk before it appears under `name`, and afterwards the name is too.

    Stores answer an upload once they have it.
    """
    with folder.staged(name) as staged:
        yield staged
        if folder.is_local:
            sync(staged)
    if folder.is_local:
        sync_folder(Path(folder.path(name)).parent)


def sync(path: Path) -> None:
    """Wait until a local file, or each file of a local folder, is on the disk."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("r+b") as opened:  # Windows syncs no file that is open only for reading
            os.fsync(opened.fileno())
    if path.is_dir():
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """Wait until the names in a local folder are on the disk; Windows has no call for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
