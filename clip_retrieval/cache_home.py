"""The caches of this machine: our own (models and their checks, folders of `search`), the hub's, and OpenAI's."""

from __future__ import annotations

import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

CACHE_VARIABLE = "CLIP_RETRIEVAL_CACHE"
MOST_FILES = 10_000  # small files of a kind; if there are more, the least recently used are removed


def cache_home() -> Path:
    """Return the folder that CLIP_RETRIEVAL_CACHE names, else clip-retrieval below XDG_CACHE_HOME or ~/.cache."""
    return first_set(CACHE_VARIABLE) or user_cache() / "clip-retrieval"


def find_obstacle() -> str | None:
    """Return why our cache cannot be written, and what to do; None if it can be written."""
    place = cache_home()
    is_new = not os.path.lexists(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK | os.X_OK):
            if is_new:
                with suppress(OSError):  # another process has put something there
                    place.rmdir()
            return None
        reason = "it is closed to this user, or read-only"
    except FileExistsError:
        reason = "it is a file"
    except NotADirectoryError:
        reason = "a file is in the place of a folder above it"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    return f"the cache {place} cannot be written ({reason}); name another folder with {CACHE_VARIABLE}"


def hub_repository(name: str, named: str | None = None) -> Path:
    """Return the folder of a repository such as ORG/NAME in a hub cache, whether or not it is there.

    `named` is the cache folder; None: the one that huggingface_hub uses.
    """
    folder = Path(named).expanduser() if named else first_set("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    folder = folder or (first_set("HF_HOME") or user_cache() / "huggingface") / "hub"
    return folder / f"models--{name.replace('/', '--')}"


def openai_folders(named: str | None = None) -> list[Path]:
    """Return where OpenAI's weights may be: the folder `named`, CLIP_DIR, and where OpenAI's package puts them."""
    places = (named, os.environ.get("CLIP_DIR"), "~/.cache/clip")
    return [Path(place).expanduser() for place in places if place]


def user_cache() -> Path:
    return first_set("XDG_CACHE_HOME") or Path("~/.cache").expanduser()


def first_set(*variables: str) -> Path | None:
    """Return the path in the first environment variable that holds one."""
    path = next((value for name in variables if (value := os.environ.get(name))), None)
    return None if path is None else Path(path).expanduser()


def read_small(place: Path) -> bytes | None:
    """Return a small file of our cache, and note that it was used; None if it is missing or damaged."""
    with suppress(OSError):
        written, _, data = place.read_bytes().partition(b"\n")
        if written != checksum(data):
            return None
        with suppress(OSError):  # the cache of another user
            os.utime(place)
        return data
    return None


def keep_small(place: Path, text: str) -> None:
    """Write a small file into our cache, whole or not at all, and make room; do nothing if that fails."""
    data, staged = text.encode(), place.with_suffix(f".{uuid4().hex}")
    with suppress(OSError):  # a full disk, or a cache of another user: what it holds is computed again
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.rmtree(place)
        try:
            staged.write_bytes(checksum(data) + b"\n" + data)
            staged.replace(place)
        finally:
            staged.unlink(missing_ok=True)
        make_room(place.parent)


def checksum(data: bytes) -> bytes:
    """Return the first line of a small file: without it, damage in a number could go unnoticed."""
    return f"{zlib.crc32(data):08x}".encode()


def make_room(folder: Path) -> None:
    """Remove the least recently used files if there are too many."""
    with os.scandir(folder) as entries:
        used = [(entry.stat().st_mtime, entry.path) for entry in entries]
    for _, path in sorted(used)[: max(0, len(used) - MOST_FILES)]:
        with suppress(OSError):  # another process was first
            Path(path).unlink()
