"""Intermediate arrays of a long run, next to its result: the same command goes on with the complete ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError, SourceError, StorageError
from clip_retrieval.storage import Folder, temporary_folder, writable

WORK_FOLDER = "_work"
KEY = "key.json"


class Workspace:
    """A local folder of npy files, each whole or absent."""

    def __init__(self, path: Path, *, keeps: bool = False) -> None:
        self.path, self.keeps = path, keeps  # keeps: as of a Folder

    def keep(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of this name, mapped; made and saved unless an earlier run did so."""
        if not self.has(name):
            self.save(name, make())
        return self.load(name)

    def load(self, name: str) -> NDArray[Any]:
        """Return a saved array, mapped."""
        mapped: NDArray[Any] = np.load(self.path / f"{name}.npy", mmap_mode="r")
        return mapped

    def save(self, name: str, value: NDArray[Any]) -> None:
        with self.making(name) as made, made.open("wb") as file:
            np.save(file, value)

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.npy").exists()

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Yield a path to write an npy file to; it gets its name if the block succeeds."""
        made = self.path / f"{name}.making"
        with writable(str(self.path), keeps=self.keeps):
            yield made
            made.replace(self.path / f"{name}.npy")


@contextmanager
def open_workspace(target: Folder, key: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Workspace]:
    """Yield the workspace of a result, which is removed if the block succeeds.

    Raises StorageError if a stopped run of another `key` left files there, unless `overwrite` empties it.
    A result on a store has a temporary one, which does not outlive the run.
    """
    if not target.is_local:
        with temporary_folder() as path:
            yield Workspace(path)
        return
    path, said = Path(target.path(WORK_FOLDER)), json.dumps(key, sort_keys=True)
    with writable(target.url):
        if path.exists() and not is_of(path, said):
            if any(path.iterdir()) and not (path / KEY).exists():
                raise StorageError(f"{path} holds files that are not ours; name another output folder")
            if any(path.glob("*.npy")) and not overwrite:
                raise StorageError(
                    f"{path} holds the work of a stopped run with other options, or of rows that have changed since; "
                    "give its options to go on with it, --overwrite to start over, or name another output folder"
                )
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / KEY).write_text(said, encoding="utf-8")
    try:
        yield Workspace(path, keeps=True)
    except (ConfigError, SourceError):  # a wrong request: nobody goes on with its files
        shutil.rmtree(path, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)


def is_of(path: Path, said: str) -> bool:
    try:
        return (path / KEY).read_text(encoding="utf-8") == said
    except OSError:
        return False
