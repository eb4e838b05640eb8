"""Whether the kept files of a folder are damaged, and what to do then."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from clip_retrieval.errors import BusyError, IndexBuildError, StorageError, describe_os_error
from clip_retrieval.photos.folders import Kept

DAMAGED = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO)  # reasons of the files, not of the disk


@contextmanager
def advising(kept: Kept) -> Iterator[None]:
    """Add to errors of unreadable files how to remove them."""
    try:
        yield
    except (StorageError, IndexBuildError, OSError) as error:
        if not may_be_damage(error):
            raise
        said = describe_os_error(error) if isinstance(error, OSError) else error.what
        raise StorageError(said, advice=kept.forgetting()) from error


def may_be_damage(error: Exception) -> bool:
    """Say whether files may be damaged; no if the disk is full or not permitted to this user, or the folder is busy."""
    cause = error if isinstance(error, OSError) else error.__cause__
    is_of_disk = isinstance(cause, OSError) and cause.errno not in DAMAGED
    return not is_of_disk and not isinstance(error, BusyError)
