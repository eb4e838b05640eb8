"""Git LFS pointers: the small text files that a clone without git-lfs has in place of large ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_retrieval.errors import ClipRetrievalError

POINTER = "version https://git-lfs"
LARGEST_POINTER = 1024  # bytes, by the specification


def describe_pointer(data: bytes | str) -> str | None:
    """Return advice if a file begins like a Git LFS pointer; None if it does not."""
    start = data[: len(POINTER)]
    if start != (POINTER if isinstance(start, str) else POINTER.encode()):
        return None
    return "a Git LFS pointer, not the file itself; run git lfs pull where it was cloned"


def find_pointer(place: Path) -> Path | None:
    """Return the first file that is a pointer: the place itself, or one directly in that folder."""
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
    except OSError:  # it cannot be listed, or was just removed: the error that is explained says more
        return None
    for file in files:
        with suppress(OSError):
            if file.is_file() and file.stat().st_size <= LARGEST_POINTER and describe_pointer(file.read_bytes()):
                return file
    return None


@contextmanager
def explaining_pointers(place: Path, error: type[ClipRetrievalError]) -> Iterator[None]:
    """If the block fails and one of the files it reads is a Git LFS pointer, raise that as the reason."""
    try:
        yield
    except error as problem:
        pointer = find_pointer(place)
        if pointer is None or "Git LFS" in str(problem):
            raise
        raise error(f"{pointer} is {describe_pointer(pointer.read_bytes())}") from problem
