"""What is kept for a folder of pictures: embeddings and index, in this machine's cache, never next to the pictures.

CACHE/photos/NAME-DIGEST/
    about.json          which folder, which model, which files the index holds; its mtime is the last use
    model-DIGEST/       embeddings/, index/: one such folder for each model; about.json names the current one
    sheet/              the page that --open shows
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.cache_home import cache_home
from clip_retrieval.errors import SourceError, StorageError
from clip_retrieval.json_files import read_json
from clip_retrieval.layout import EmbeddingsFolder, read_manifest
from clip_retrieval.paths import local_path
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder, writable

logger = logging.getLogger(__name__)

ABOUT = "about.json"
REMOVED = ".removed-"  # beginning of the name of a folder that is being forgotten
LABEL_LETTERS = 40


@dataclass(frozen=True)
class About:
    """The folder, the model it was embedded with, and the state of its files that the index holds."""

    folder: str
    clip_model: str
    seen: str = ""  # digest of the listing; empty until there is an index
    pictures: int = 0  # in the index, including pages and frames
    raw_only: int = 0
    files: int = 0
    videos: int = 0


@dataclass(frozen=True)
class Kept:
    """The place of a folder of pictures in the cache."""

    folder: str  # of the pictures, links resolved
    place: Path

    def about(self) -> About | None:
        """Return what is known; None for a folder that was never embedded.

        If the file is damaged, the manifest of the embeddings names the model, and the next search does the rest.
        """
        path = self.place / ABOUT
        try:
            return read_json(path, About) if path.exists() else None
        except StorageError as error:
            return self.restore(error)

    def restore(self, damage: StorageError) -> About | None:
        """Write about.json again, without the state of the files; remove it if no other file names the model."""
        logger.warning("%s is scanned again: %s", self.folder, damage.what)
        named = [read_model(path) for path in sorted(self.place.glob("model-*"))]
        known = [model for model in named if model is not None and self.model_place(model).exists()]
        remove(self.place / ABOUT)
        if not known:
            return None
        about = About(self.folder, known[-1])
        self.write(about)
        return about

    def write(self, about: About) -> None:
        Folder(str(self.place)).write_json(ABOUT, asdict(about))

    def touch(self) -> None:
        """Note that the folder was used now."""
        with suppress(OSError):  # the cache may belong to another user
            os.utime(self.place / ABOUT)

    def embeddings(self, model: str) -> str:
        return f"{self.model_place(model)}/embeddings"

    def index(self, model: str) -> str:
        return f"{self.model_place(model)}/index"

    def model_place(self, model: str) -> Path:
        return self.place / f"model-{hashlib.sha256(os.fsencode(model)).hexdigest()[:8]}"

    def sheet(self) -> str:
        return f"{self.place}/sheet"

    def forgetting(self) -> str:
        """Return what a user can do if the kept files cannot be repaired."""
        return f"clip-retrieval search --forget {shlex.quote(self.folder)} removes what is kept, to embed it again"

    def remove_model(self, model: str) -> None:
        shutil.rmtree(self.model_place(model), ignore_errors=True)

    @contextmanager
    def locked(self, before_waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Lock the kept files against other searches; raises BusyError, or waits, as `only_one` does."""
        while True:
            with writable(str(self.place)):
                self.place.mkdir(parents=True, exist_ok=True)
            before = self.place.stat().st_ino
            with only_one(Folder(str(self.place)), before_waiting):
                if self.place.exists() and self.place.stat().st_ino == before:
                    yield
                    return  # otherwise it was forgotten while this process waited


def read_model(place: Path) -> str | None:
    """Return the model of embeddings; None if they do not name it."""
    try:
        encoder = (read_manifest(EmbeddingsFolder(f"{place}/embeddings")) or {}).get("encoder") or {}
        return str(encoder["clip_model"])
    except (StorageError, KeyError, TypeError):
        return None


def remove(place: Path) -> None:
    """Remove a file, or a folder in its place. Raises StorageError."""
    with writable(str(place)):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def photos_home() -> Path:
    return cache_home() / "photos"


def find_kept(folder: str) -> Kept:
    """Return the place of a folder, which may no longer exist; every spelling of its path has the same place."""
    real = os.path.realpath(local_path(folder) or folder)
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    label = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in Path(real).name)
    return Kept(real, photos_home() / f"{label[:LABEL_LETTERS].strip('-') or 'folder'}-{digest}")


def check_is_folder(folder: str) -> None:
    """Raise SourceError if the folder does not exist."""
    path = local_path(folder)
    if path is None or not path.exists():
        raise SourceError(f"there is no folder {folder}")
    if not path.is_dir():
        raise SourceError(f"{folder} is a file, not a folder; name the folder that contains it")


@dataclass(frozen=True)
class KeptFacts:
    """A line of `search --list`."""

    folder: str
    clip_model: str
    pictures: int
    bytes: int
    last_used: float  # seconds since 1970
    is_there: bool  # the folder of pictures itself


@dataclass(frozen=True)
class KeptList:
    """All that is kept, and where."""

    place: str
    folders: list[KeptFacts]

    def to_json(self) -> dict[str, Any]:
        return {"place": self.place, "folders": [asdict(facts) for facts in self.folders]}


def list_kept() -> KeptList:
    """Return what is kept for each folder, the last used one first."""
    found = []
    for path in sorted(photos_home().glob(f"*/{ABOUT}")):
        if path.parent.name.startswith(REMOVED):
            continue
        try:
            about, used = read_json(path, About), path.stat().st_mtime
        except StorageError:
            about, used = About(f"(unreadable: {path})", "?"), 0.0
        size = count_bytes(path.parent)
        found.append(KeptFacts(about.folder, about.clip_model, about.pictures, size, used, Path(about.folder).is_dir()))
    return KeptList(str(photos_home()), sorted(found, key=lambda facts: -facts.last_used))


def count_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; another process may remove some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def forget(folder: str) -> dict[str, Any]:
    """Remove what is kept for a folder; raises SourceError if nothing is, and BusyError while another embeds it."""
    kept = find_kept(folder)
    if not kept.place.exists():
        raise SourceError(f"nothing is kept for {kept.folder}; search --list shows the kept folders")
    with kept.locked():
        size = count_bytes(kept.place)
        removed = kept.place.with_name(f"{REMOVED}{os.getpid()}-{kept.place.name}")
        with writable(str(kept.place)):
            kept.place.rename(removed)  # in one step, so a kill leaves nothing half removed
    for left in photos_home().glob(f"{REMOVED}*"):
        shutil.rmtree(left, ignore_errors=True)
    return {"folder": kept.folder, "bytes": size}
