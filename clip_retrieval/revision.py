"""Several files of a folder that change together, or not at all.

    write elsewhere ──▶ journal (one file, whole or absent) ──▶ renames ──▶ journal removed

Before the journal is written, nothing has changed. Once it is written, the change will be completed: the next process
that opens the folder finishes a journal it finds.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypedDict

from clip_retrieval.errors import BusyError, StorageError
from clip_retrieval.layout import JOURNAL, REVISION_FOLDER
from clip_retrieval.storage import Folder, check_inside

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Errors of file systems without locks: on these, as on object stores, a second process is not noticed.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
SECONDS_OF_PATIENCE = 10.0  # renames take milliseconds


class Journal(TypedDict):
    """The renames and removals that complete a change."""

    writes: dict[str, str]  # name -> where its new content is
    removals: list[str]


class Revision(Folder):
    """A folder in its current state; what is published into it is staged until `commit`."""

    def __init__(self, url: str, *, keeps: bool = False) -> None:
        super().__init__(url, keeps=keeps)
        self.writes: dict[str, str] = {}  # name -> where its new content is
        self.removals: list[str] = []
        self.places = count()
        super().remove(REVISION_FOLDER)  # files that a killed run staged without writing a journal

    def publish(self, staged: Path, name: str) -> None:
        place = self.writes.get(name) or f"{REVISION_FOLDER}/{next(self.places)}"
        super().publish(staged, place)
        self.writes[name] = place
        if name in self.removals:
            self.removals.remove(name)

    def remove(self, name: str) -> None:
        place = self.writes.pop(name, None)
        if place is not None:
            super().remove(place)
        if self.exists(name) and name not in self.removals:
            self.removals.append(name)

    def commit(self) -> None:
        """Put all staged files into the folder, whole or not at all."""
        folder = Folder(self.url)
        if self.writes or self.removals:
            folder.write_json(JOURNAL, {"writes": self.writes, "removals": self.removals})
            finish_revision(folder)
        self.writes, self.removals = {}, []


def finish_revision(folder: Folder) -> None:
    """Complete a journal, if there is one; raises StorageError if that fails."""
    if not folder.exists(JOURNAL):
        return
    journal = folder.read_shaped_json(JOURNAL, Journal)
    check_inside(folder, JOURNAL, [*journal["writes"], *journal["writes"].values(), *journal["removals"]])
    for name, place in journal["writes"].items():
        if not folder.exists(place):
            continue  # done by an earlier try
        if folder.is_folder(place) or folder.is_folder(name):
            folder.remove(name)  # a rename does not replace a folder
        folder.move(place, name)
    for name in journal["removals"]:
        folder.remove(name)
    folder.remove(JOURNAL)
    folder.remove(REVISION_FOLDER)


@contextmanager
def only_one(folder: Folder, before_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other revisions of a folder on this machine out; raises BusyError if one is under way.

    With `before_waiting`, call that and wait for the other one's end instead. The lock ends with its process. Object
    stores have no lock.
    """
    if fcntl is None or not folder.is_local or not folder.exists():
        yield
        return
    descriptor = os.open(folder.root, os.O_RDONLY)
    try:
        lock(descriptor, folder.url, before_waiting)
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, name: str, before_waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if before_waiting is None:
            raise BusyError(f"another process is changing {name}; wait until it has ended") from error
        before_waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise StorageError(f"{name} cannot be locked: {error.strerror}") from error


def settle(folder: Folder) -> None:
    """Wait until another process has committed its revision, or finish one whose process was killed.

    Call before reading a folder. Raises StorageError if the folder cannot be written.
    """
    end = time.monotonic() + SECONDS_OF_PATIENCE
    while folder.exists(JOURNAL):
        try:
            with only_one(folder):
                finish_revision(folder)
        except StorageError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        except OSError as error:
            raise StorageError(
                f"a change of {folder.url} was stopped halfway and cannot be finished ({error}); "
                "let its owner give the command again"
            ) from error
