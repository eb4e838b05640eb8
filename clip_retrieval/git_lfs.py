"""Git LFS pointers: the small text files that a clone without git-lfs has in place of large ones."""

from __future__ import annotations

POINTER = "version https://git-lfs"


def describe_pointer(data: bytes | str) -> str | None:
    """Return what to do where a file's first bytes are those of a Git LFS pointer; None where they are not."""
    start = data[: len(POINTER)]
    if start != (POINTER if isinstance(start, str) else POINTER.encode()):
        return None
    return "a Git LFS pointer, not the file itself; run git lfs pull where it was cloned"
