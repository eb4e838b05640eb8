"""Many small files of a folder: a store is asked for several at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clip_retrieval.errors import StorageError
from clip_retrieval.layout import EmbeddingsFolder

FILES_AT_ONCE = 1000


def read_all(folder: EmbeddingsFolder, names: Sequence[str]) -> Iterator[bytes]:
    """Yield the content of all files, in order; raises StorageError if one is missing."""
    for start in range(0, len(names), FILES_AT_ONCE):
        some = names[start : start + FILES_AT_ONCE]
        found = read_there(folder, some)
        for name in some:
            if name not in found:
                raise StorageError(f"{folder.path(name)} is missing; make the folder again")
            yield found[name]


def read_there(folder: EmbeddingsFolder, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of the files that exist, by name."""
    found: dict[str, bytes] = {}
    if folder.is_local:
        for name in names:
            try:
                found[name] = folder.read_bytes(name)
            except FileNotFoundError:
                continue
        return found
    with folder.answering():
        contents = folder.fs.cat([folder.path(name) for name in names], on_error="return") if names else {}
        for name in names:
            content = contents.get(folder.path(name))
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
            if isinstance(content, bytes):
                found[name] = content
    return found
