"""Files of this machine under the names of fsspec's methods, without its import, which takes 30 to 50 ms."""

from __future__ import annotations

import os
import shutil
import stat
from functools import cache
from pathlib import Path
from typing import IO, Any

from clip_retrieval.errors import StorageError
from clip_retrieval.paths import describe_special


class LocalFiles:
    """The methods that every start needs; fsspec's local file system has all others."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickle and copy look for methods that are not there
            raise AttributeError(name)
        return getattr(local_file_system(), name)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Do nothing: nothing is cached."""

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def isdir(self, path: str) -> bool:
        return Path(path).is_dir()

    def isfile(self, path: str) -> bool:
        return Path(path).is_file()

    def size(self, path: str) -> int:
        return Path(path).stat().st_size

    def makedirs(self, path: str, *, exist_ok: bool = False) -> None:
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def rm(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or a link, or a folder with all that is in it."""
        target = Path(path)
        if recursive and target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()

    def open(self, path: str, mode: str = "rb") -> IO[Any]:
        if mode.startswith("r"):
            check_regular(path)
        return Path(path).open(mode)

    def ls(self, path: str, *, detail: bool = True) -> list[Any]:
        """Return the paths of a folder's entries or, with `detail`, what stores say of each; a file is its entry."""
        try:
            entries = os.scandir(path)
        except NotADirectoryError:
            return list(local_file_system().ls(path, detail=detail))
        if not detail:
            return [entry.path for entry in entries]
        return [about for entry in entries if (about := describe_entry(entry)) is not None]


def describe_entry(entry: os.DirEntry[str]) -> dict[str, Any] | None:
    """Return name, type, size and time of an entry; None if it was removed meanwhile, or is a broken link."""
    try:
        state = entry.stat()
    except FileNotFoundError:
        return None
    kind = "directory" if stat.S_ISDIR(state.st_mode) else "file"
    return {"name": entry.path, "type": kind, "size": state.st_size, "mtime": state.st_mtime}


def check_regular(path: str) -> None:
    """Raise StorageError for a special file, such as a pipe: reading one may never end."""
    kind = describe_special(Path(path))
    if kind is not None:
        raise StorageError(f"{path} is {kind}, not a file", advice="put the file there, or make the folder again")


@cache
def local_file_system() -> Any:
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 -- see above

    return LocalFileSystem()
