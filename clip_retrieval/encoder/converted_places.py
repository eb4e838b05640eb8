"""The places of converted models in the cache: named by model and files, damaged or unused ones are removed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from threading import RLock
from uuid import uuid4

from clip_retrieval.cache_home import cache_home, hub_repository
from clip_retrieval.encoder.config import Chosen, EncoderConfig
from clip_retrieval.encoder.formats.onnx_sums import SUMS, find_damage
from clip_retrieval.encoder.openai_cache import find_openai
from clip_retrieval.encoder.uri import GGUF_HUB_PREFIX, HUB_PREFIX, ModelName
from clip_retrieval.storage import size_of

logger = logging.getLogger(__name__)

KEPT_BYTES = 20 * 2**30  # of the most recently used models; others are removed
REMOVED: set[Path] = set()  # places of damaged models: the message on removing them said that they are made again
REMAKING = RLock()  # threads that open the graphs of one model may find it damaged at once
FORM = 2  # version of the cache's content; entries of other versions are converted again


def place(name: ModelName, config: EncoderConfig, precision: Chosen, suffix: str = "") -> Path:
    """Return the place of a model, which depends on its name, its files and the packages that read or convert it."""
    versions = [importlib.metadata.version(package) for package in ("open_clip_torch", "torch")]
    weights = find_openai(name, config.clip_cache_path) or name.weights or ""
    files = [file_facts(text, config.clip_cache_path) for text in (name.architecture, weights)]
    facts = (
        *(FORM, name.kind, name.architecture, name.weights, name.options, config.clip_cache_path, versions, files),
        *name.pictures,
    )
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    label = "".join(letter if letter.isalnum() else "-" for letter in name.uri)[-60:].strip("-")
    return cache_folder() / f"{label}-{digest}{suffix}{'-int8' if precision == 'int8' else ''}"


def file_facts(text: str, cache: str | None) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file of a local model, or the revision of one of the hub."""
    path = Path(text.removeprefix("local-dir:")).expanduser()
    if text.startswith((HUB_PREFIX, GGUF_HUB_PREFIX)):
        path = hub_folder(text, cache) / "refs"
    if not text or not path.exists():
        return []
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [(str(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files]


def hub_folder(text: str, cache: str | None) -> Path:
    name = text.removeprefix(HUB_PREFIX).removeprefix(GGUF_HUB_PREFIX).partition("@")[0]
    return hub_repository("/".join(name.split("/")[:2]), cache)


def cache_folder() -> Path:
    """Return the folder of converted models."""
    return cache_home() / "models"


def is_whole(folder: Path, towers: Collection[str] = ()) -> bool:
    """Say whether a folder of the cache is there; one that is damaged is removed."""
    if not os.path.lexists(folder):
        return False
    with REMAKING:
        seen = identify(folder)
        damage = find_damage(folder, towers, is_own=True)
        if damage is None:
            return True
        # Another process may have found the damage too, and made the model again meanwhile.
        return not remove(folder, damage, seen) and is_whole(folder, towers)


def identify(folder: Path) -> tuple[int, ...]:
    """Return facts that a folder made again does not share; empty if it has no checksums."""
    try:
        facts = (folder / SUMS).stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def remove(folder: Path, damage: str, seen: tuple[int, ...]) -> bool:
    """Remove a damaged folder atomically: other processes see it whole or not at all.

    Returns False if it is no longer the one that was `seen`: then it stays.
    """
    left = folder.with_name(f".removed-{uuid4().hex[:8]}")
    is_moved = False
    with suppress(OSError):  # the cache of another user: torch runs the model
        folder.rename(left)
        is_moved = True
    if is_moved and identify(left) != seen:
        with suppress(OSError):  # there is one in its place again
            left.rename(folder)
        discard(left)
        return False
    logger.warning("%s; the model is prepared for this CPU again", damage)
    REMOVED.add(folder)
    discard(left)
    return True


def discard(path: Path) -> None:
    """Remove a folder or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def make_room(kept: Path) -> None:
    """Remove the least recently used models, until the rest is small enough."""
    folders = sorted(kept.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        total += size_of(folder)
        if total > KEPT_BYTES and folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
