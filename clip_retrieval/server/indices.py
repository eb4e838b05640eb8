"""Served indices: an opened build of a folder is a generation, which a newer one replaces without a restart."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import xxhash

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.errors import ClipRetrievalError, ConfigError, QueryError, StorageError, describe_os_error
from clip_retrieval.layout import (
    COLUMNS_FOLDER,
    IMAGE_PATH,
    INDEX_SUFFIX,
    MANIFEST,
    METADATA_ARROW,
    METADATA_FOLDER,
    MODALITIES,
    PICTURES_BELOW,
    SHARD_COLUMNS,
    IndexFolder,
    Modality,
    read_manifest,
)
from clip_retrieval.query.pictures import Roots
from clip_retrieval.query.searcher import Searcher, open_searcher
from clip_retrieval.search.files import list_indices
from clip_retrieval.server.config import URL, USUAL_COLUMNS, ServedConfig
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.named import NamedIndex

logger = logging.getLogger(__name__)

USUAL_MODEL = "ViT-B/32"  # of an index of clip-retrieval 2, which does not name its model
OPENING_TRIES = 5
MAPPED_SUFFIXES = (".arrow", ".ivfdata")  # of files that are mapped even without `memory_map`
HOW = "build the index again, or rename a finished file into place"
FOOTER_BYTES = 8192  # at the end of a parquet file: its footer has the least and largest value of each column

Stamp = tuple[tuple[str, int, int, int], ...]  # name, inode, bytes and time of each file


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """One build of an index folder, opened. It never changes, and is closed when the last request has ended."""

    name: str
    id: str
    searchers: Mapping[Modality, Searcher]
    stamp: Stamp
    usual_columns: tuple[str, ...]  # what clip-retrieval 2's endpoints return; `url` may come from image_path
    columns: tuple[str, ...]  # all that may be returned
    roots: Roots

    def searcher(self, modality: Modality) -> Searcher:
        """Return the index of a modality. Raises HttpError if the folder has none."""
        found = self.searchers.get(modality)
        if found is None:
            there = " and ".join(self.searchers)
            raise HttpError(HTTPStatus.BAD_REQUEST, f"the index {self.name} has no {modality} index, only {there}")
        return found

    @property
    def first(self) -> Searcher:
        return next(iter(self.searchers.values()))

    @property
    def clip_model(self) -> str | None:
        return (self.first.expected or {}).get("clip_model") or self.first.config.clip_model

    def describe(self) -> dict[str, Any]:
        """Return what requests may know about it."""
        return {
            "name": self.name,
            "generation": self.id,
            "clip_model": self.clip_model,
            "dimension": self.first.index.dim,
            "rows": {modality: searcher.index.row_count for modality, searcher in self.searchers.items()},
            "columns": list(self.columns),
            "pictures": bool(self.roots.places),
            "files": bool(self.roots.places),
        }


@dataclass
class EncoderPool:
    """Open models, shared by all searchers with the same model."""

    known: dict[str, tuple[threading.Lock, list[Encoder]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def share(self, searcher: Searcher) -> Searcher:
        """Return the searcher with the model that an equal one has opened, or will open."""
        config = searcher.config
        key = json.dumps([searcher.expected, config.clip_model, config.device, config.clip_cache_path], sort_keys=True)
        with self.lock:
            encoding, loaded = self.known.setdefault(key, (searcher.encoding, searcher.loaded))
        return dataclasses.replace(searcher, encoding=encoding, loaded=loaded)


def open_generation(index: NamedIndex, encoders: EncoderPool) -> Generation:
    """Open the current build of an index folder. Raises ClipRetrievalError if it cannot answer."""
    if index.parts:
        raise ConfigError(f"{index.name} is in parts on other servers, which only `back` can use; name an index folder")
    folder = IndexFolder(index.folder)
    if not folder.exists():
        raise QueryError(f"there is no index folder {folder.url}")
    for _ in range(OPENING_TRIES):
        stamp = read_stamp(folder)
        config = with_usual_model(index.config, folder)
        found = {
            modality: encoders.share(
                open_searcher(folder, dataclasses.replace(config.searcher, modality=modality), workload="query")
            )
            for modality in list_indices(folder)
        }
        if read_stamp(folder) == stamp:
            return describe_build(index, folder, found, stamp)
    raise StorageError(f"{folder.url} keeps changing; try again when its build has finished")


def with_usual_model(config: ServedConfig, folder: IndexFolder) -> ServedConfig:
    """Return the options; if neither they nor the folder name a model, with clip-retrieval 2's usual model."""
    if config.clip_model is not None or (read_manifest(folder) or {}).get("encoder"):
        return config
    logger.warning("%s does not name its model: %s is used (see --clip_model)", folder.url, USUAL_MODEL)
    return dataclasses.replace(config, clip_model=USUAL_MODEL)


def describe_build(
    index: NamedIndex, folder: IndexFolder, searchers: Mapping[Modality, Searcher], stamp: Stamp
) -> Generation:
    first, manifest = next(iter(searchers.values())), read_manifest(folder) or {}
    there = () if first.metadata is None else tuple(first.metadata.schema.names)
    chosen = index.config.columns_to_return
    usual = [name for name in there if name not in SHARD_COLUMNS]  # places of files on this machine
    allowed = tuple(usual if chosen is None else [name for name in chosen if name in there])
    return Generation(
        name=index.name,
        id=digest_build(folder, searchers),
        searchers=searchers,
        stamp=stamp,
        usual_columns=tuple(
            name for name in (chosen or USUAL_COLUMNS) if name in there or (name == URL and IMAGE_PATH in there)
        ),
        columns=allowed,
        roots=Roots.of(index.config.pictures_below or manifest.get(PICTURES_BELOW) or ()),
    )


def digest_build(folder: IndexFolder, searchers: Mapping[Modality, Searcher]) -> str:
    """Return a digest that two builds share only if ids mean the same rows in both; it is the same on every machine."""
    digest = xxhash.xxh3_64()
    for modality, searcher in searchers.items():
        digest.update(f"{modality} {searcher.fingerprint}\n".encode())
    for name, size in folder.sizes(METADATA_FOLDER, ".parquet").items():
        digest.update(f"{name} {size}\n".encode())
        if folder.is_local:
            with folder.open(f"{METADATA_FOLDER}/{name}") as file:
                file.seek(max(0, size - FOOTER_BYTES))
                digest.update(file.read())
    return digest.hexdigest()


def read_stamp(folder: IndexFolder) -> Stamp:
    """Return what shows whether any file of a folder was replaced; empty if it is not on this machine."""
    if not folder.is_local:
        return ()
    root = Path(folder.root)
    names = [MANIFEST, METADATA_ARROW, *(IndexFolder.index_name(modality) for modality in MODALITIES)]
    places = [root / name for name in names]
    places += sorted((root / METADATA_FOLDER).glob("*")) + sorted((root / COLUMNS_FOLDER).glob("*/*"))
    places += sorted(root.glob(f"*{INDEX_SUFFIX}/*"))
    found = []
    for place in places:
        try:
            facts = place.stat()
        except OSError:
            continue
        found.append((str(place), facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return tuple(found)


def find_overwritten(current: Generation, stamp: Stamp) -> str | None:
    """Return the first mapped file of a build whose bytes have changed, by its stamp; None if there is none.

    A file that was renamed into place is another inode; the mapping of the old file does not change.
    """
    now = {(name, inode): rest for name, inode, *rest in stamp}
    for name, inode, *rest in current.stamp:
        is_index = Path(name).suffix == INDEX_SUFFIX or Path(name).parent.suffix == INDEX_SUFFIX
        is_mapped = name.endswith(MAPPED_SUFFIXES) or (is_index and current.first.config.memory_map)
        if is_mapped and now.get((name, inode), rest) != rest:
            return name
    return None


class ServedIndex:
    """An index by its name; `current` is its newest build that could be opened.

    `damage` says why this build must not answer: one of its files was overwritten in place.
    """

    def __init__(self, index: NamedIndex, encoders: EncoderPool) -> None:
        self.index, self.encoders = index, encoders
        self.current = open_generation(index, encoders)
        self.seen = self.refused = self.current.stamp
        self.unasked: tuple[Stamp, str] = (self.seen, self.current.id)  # opened for a request that named another build
        self.looking = threading.Lock()
        self.damage = ""

    def look(self) -> bool:
        """Open a newer build, once its files have not changed between two looks; return whether there is one.

        A build that cannot be opened is logged once, and the older one goes on answering.
        """
        with self.looking:
            stamp = self.read_stamp()
            self.notice(stamp)
            is_settled, self.seen = stamp == self.seen, stamp
            if not is_settled or stamp in (self.current.stamp, self.refused):
                return False
            try:
                opened = open_generation(self.index, self.encoders)
            except (ClipRetrievalError, OSError) as error:
                said = describe_os_error(error) if isinstance(error, OSError) else str(error)
                logger.warning("the new build of %s is not served: %s", self.index.folder, said)
                self.refused = stamp
                return False
            return self.take(opened)

    def look_for(self, generation: str | None) -> None:
        """Open the build that a request names, which another process may already serve; None: the current one.

        Half-written files, which cannot be opened, are left for the next look.
        """
        with self.looking:
            stamp = self.read_stamp()
            self.notice(stamp)
            is_known = stamp in (self.current.stamp, self.refused)
            if (
                generation == self.current.id
                or is_known
                or (stamp == self.unasked[0] and generation != self.unasked[1])
            ):
                return
            try:
                opened = open_generation(self.index, self.encoders)
            except (ClipRetrievalError, OSError):
                self.unasked = (stamp, "")  # `look` logs the reason if it persists
                return
            if generation in (None, opened.id):
                self.take(opened)
            else:
                self.unasked = (opened.stamp, opened.id)

    def notice(self, stamp: Stamp) -> None:
        """Notice that a mapped file was overwritten in place, until it is restored or another build is served."""
        if stamp == self.current.stamp:
            self.damage = ""
        elif not self.damage and (file := find_overwritten(self.current, stamp)):
            what = f"{file} was overwritten in place while it was served, so hits may be wrong"
            logger.warning("%s: %s does not answer until it has a complete build; %s", what, self.index.name, HOW)
            self.damage = f"{what}; {HOW}"

    def read_stamp(self) -> Stamp:
        return read_stamp(IndexFolder(self.index.folder))

    def take(self, opened: Generation) -> bool:
        """Replace the current build; return whether ids may mean other rows."""
        is_new = opened.id != self.current.id
        self.current, self.damage = opened, ""
        if is_new:
            logger.info("%s: a new build is served, generation %s", self.index.name, opened.id)
        return is_new
