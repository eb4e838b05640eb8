"""The pictures of the hits as files: copied, also from tars and zips, or linked; complete ones are kept."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from clip_retrieval.encoder.picture_suffixes import IMAGE_SUFFIXES
from clip_retrieval.errors import StorageError
from clip_retrieval.filter.config import Export
from clip_retrieval.filter.hits import Hits
from clip_retrieval.filter.sheet import make_card
from clip_retrieval.layout import IMAGE_PATH, SHARD, SHARD_SIZE
from clip_retrieval.media.places import split_place
from clip_retrieval.query.hits import rows_of
from clip_retrieval.query.pictures import WEB, find_local_file, find_picture
from clip_retrieval.storage import Folder
from clip_retrieval.words import UNPRINTED

IMAGES_FOLDER = "images"
OWN_PICTURE = re.compile(r"\d{5,}_.*", re.DOTALL)
MOST_NAME_BYTES = 200  # file systems allow 255 for a whole name
PLAIN_SUFFIX = re.compile(r"\.\w{1,10}", re.ASCII)
REFUSED = re.compile(r'[/\\:*?"<>|\t\n]')  # by Windows, in names of files
NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
NO_LINK_ERRORS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)
HEAD_BYTES = 1 << 16
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "TIFF": ".tif", "PPM": ".ppm"}


def picture_name(prefix: str, hit: dict[str, Any], data: bytes) -> str:
    """Return a file name that every system accepts and no other hit has: the rank, then the picture's own name.

    The rank distinguishes equal names, and turns `..` and Windows' CON into plain names.
    """
    path = str(hit[IMAGE_PATH])
    own = PurePosixPath(path.partition("?")[0] if path.startswith(WEB) else path)
    # A path in an archive ends in the picture's suffix. A key of a webdataset has none: a.v1 is a whole key.
    # The path of a page or a frame ends in its place.
    is_suffix = (hit.get(SHARD) is None and split_place(path) is None) or own.suffix.lower() in IMAGE_SUFFIXES
    suffix = own.suffix if is_suffix and PLAIN_SUFFIX.fullmatch(own.suffix) else ""
    stem = portable(own.name.removesuffix(suffix))
    suffix = suffix or suffix_of(data)
    short = stem.encode("utf-8", "replace")[: MOST_NAME_BYTES - len(suffix)].decode("utf-8", "ignore")
    return f"{prefix}_{short}{suffix}"


def portable(name: str) -> str:
    """Return a name with _ for each character that a file system refuses or a terminal obeys."""
    return REFUSED.sub("_", UNPRINTED.sub("_", name)).rstrip(". ")


def suffix_of(data: bytes) -> str:
    try:
        from PIL import Image  # 30 ms of every start, and most pictures have a suffix

        with Image.open(io.BytesIO(data)) as image:
            return SUFFIX_OF_FORMAT.get(image.format or "", f".{(image.format or 'bin').lower()}")
    except Exception:  # it was a picture when it was embedded; export it even if it no longer is  # noqa: BLE001
        return ".bin"


class PictureExport(msgspec.Struct):
    """Writes the pictures of the hits, one at a time: memory holds one picture."""

    folder: Folder
    hits: Hits
    mode: Export
    shown: Sequence[range] = ()  # places of the hits that the sheet shows
    cards: dict[int, tuple[str, str]] = msgspec.field(default_factory=dict)  # of the shown hits, by place
    kept: dict[str, str] = msgspec.field(default_factory=dict)  # names of pictures that exist already, by prefix
    copied_instead: int = 0  # pictures that could not be linked

    def run(self) -> None:
        """Write the pictures, add their names and problems to the hits, and remove all other pictures."""
        if self.mode == "none":
            for place, hit in self.rows(self.shown):
                self.export(place, hit, is_shown=True)
            return
        self.kept = {self.prefix_in(name): name for name in list_own(self.folder)}
        shown = {place for places in self.shown for place in places}
        for place, hit in self.rows([range(self.hits.count)]):
            self.export(place, hit, is_shown=place in shown)
        written = set(self.hits.names.values())
        for name in self.kept.values():
            if f"{IMAGES_FOLDER}/{name}" not in written:
                self.folder.remove(f"{IMAGES_FOLDER}/{name}")

    def rows(self, ranges: Iterable[range]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the hits at some places, each with its place."""
        for places in ranges:
            rows = (hit for block in self.hits.blocks(places.start, places.stop) for hit in rows_of(block))
            yield from zip(places, rows, strict=True)

    def prefix_of(self, place: int, rank: int) -> str:
        """Return the prefix of a picture's name: the rank; in a batch, the number of the query before it."""
        return f"{self.hits.query_of(place).number:05d}_{rank:05d}" if self.hits.is_batch else f"{rank:05d}"

    def prefix_in(self, name: str) -> str:
        return "_".join(name.split("_")[: 2 if self.hits.is_batch else 1])

    def export(self, place: int, hit: dict[str, Any], *, is_shown: bool) -> None:
        """Write the picture of a hit as the mode says, unless it exists; make its card."""
        prefix, picture = self.prefix_of(place, hit["rank"]), None
        name = None if self.mode == "none" else self.find_kept(prefix, hit) or self.link(prefix, hit)
        if name is None:
            picture = find_picture(hit)
            data = picture.data
            if self.mode != "none" and data is not None:
                name = self.put(prefix, hit, data, lambda path: path.write_bytes(data))
                self.copied_instead += self.mode != "copy"
        if name is not None:
            self.hits.names[place] = name
        if is_shown:
            picture = picture or find_picture(hit)
            self.cards[place] = make_card(hit, picture, name)
        if picture is not None and picture.problem is not None:
            self.hits.problems[place] = picture.problem

    def find_kept(self, prefix: str, hit: dict[str, Any]) -> str | None:
        """Return the name of a hit's picture if an earlier run of the same query wrote all of it."""
        name = self.kept.get(prefix)
        return f"{IMAGES_FOLDER}/{name}" if name and is_same(self.folder, f"{IMAGES_FOLDER}/{name}", hit) else None

    def link(self, prefix: str, hit: dict[str, Any]) -> str | None:
        """Link the file of a hit's picture; None if it is in an archive or cannot be linked from here."""
        if self.mode not in ("hardlink", "symlink"):
            return None
        source = find_local_file(hit)
        if source is None:
            return None
        make = os.link if self.mode == "hardlink" else os.symlink
        try:
            return self.put(prefix, hit, read_head(source), lambda path: make(source, path))
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_LINK_ERRORS:
                return None
            raise

    def put(self, prefix: str, hit: dict[str, Any], data: bytes, make: Callable[[Path], object]) -> str:
        """Make a file below images/ and return its name: only the prefix if the store refuses the picture's name."""
        name = f"{IMAGES_FOLDER}/{picture_name(prefix, hit, data)}"
        try:
            return put_file(self.folder, name, make)
        except StorageError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in NAME_ERRORS:
                raise
            return put_file(self.folder, f"{IMAGES_FOLDER}/{prefix}_{suffix_of(data)}", make)


def put_file(folder: Folder, name: str, make: Callable[[Path], object]) -> str:
    with folder.staged(name) as staged:
        make(staged)
    return name


def list_own(folder: Folder) -> list[str]:
    """Return the names of the pictures below images/ that a query wrote."""
    return [name for name in folder.names(IMAGES_FOLDER, "") if OWN_PICTURE.fullmatch(name)]


def is_same(folder: Folder, name: str, hit: dict[str, Any]) -> bool:
    """Say whether an existing picture is that of the hit: by size, and for files also by time."""
    try:
        size = int(folder.fs.size(folder.path(name)))
        if hit.get(SHARD_SIZE) is not None:
            return size == int(hit[SHARD_SIZE])
        source = find_local_file(hit)
        if source is None:
            return True
        about = source.stat()
        is_newer = folder.is_local and about.st_mtime > Path(folder.path(name)).stat().st_mtime
    except OSError:
        return False
    return size == about.st_size and not is_newer


def read_head(path: Path) -> bytes:
    """Return the first bytes of a picture without a suffix, which say what kind it is."""
    if PLAIN_SUFFIX.fullmatch(path.suffix):
        return b""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
