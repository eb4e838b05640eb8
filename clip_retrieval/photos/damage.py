"""Whether what is kept of a folder is damaged, and what to do then."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from clip_retrieval.errors import BusyError, IndexBuildError, StorageError, describe_os_error
from clip_retrieval.photos.folders import Kept

DAMAGED = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO)  # reasons of the files, not of the disk


@contextmanager
def advising(kept: Kept) -> Iterator[None]:
    """Say of files that cannot be read how to be rid of them."""
    try:
        yield
    except (StorageError, IndexBuildError, OSError) as error:
        if not may_be_damage(error):
            raise
        said = describe_os_error(error) if isinstance(error, OSError) else error.what
        raise StorageError(said, advice=kept.forgetting()) from error


def may_be_damage(error: Exception) -> bool:
    """Say whether files may be damaged; no for a disk that is full or closed to this user, and for a busy folder."""
    cause = error if isinstance(error, OSError) else error.__cause__
    is_of_disk = isinstance(cause, OSError) and cause.errno not in DAMAGED
    return not is_of_disk and not isinstance(error, BusyError)
