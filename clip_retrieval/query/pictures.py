"""The picture of a hit: from a file, a tar, a zip, a table, a page of a PDF, a frame of a video or a url."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from clip_retrieval.blobs import BlobRef, read_blob
from clip_retrieval.errors import StorageError, one_line
from clip_retrieval.layout import IMAGE_PATH, SHARD, SHARD_OFFSET, SHARD_SIZE
from clip_retrieval.media.places import is_document, split_place
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.paths import is_pipe, literal, local_path
from clip_retrieval.sources.zip_headers import stored_crc
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean

WEB = ("http://", "https://")
PAGE_SIDE = 1600  # pixels of the longer side of a page that is shown: its text can be read
REPLACED = "\ufffd"  # metadata's replacement of bytes that are not UTF-8


class Picture(msgspec.Struct, frozen=True):
    """A hit's picture: its bytes, or why they could not be read; neither if the hit has no picture."""

    data: bytes | None
    problem: str | None = None


class Roots(msgspec.Struct, frozen=True):
    """Folders and archives whose pictures may be read for strangers, by their real paths."""

    places: tuple[str, ...]

    @staticmethod
    def of(folders: Iterable[str]) -> Roots:
        return Roots(tuple(Folder(folder).place.rstrip("/") for folder in folders if not is_foreign(folder)))

    def allow(self, hit: dict[str, Any]) -> bool:
        """Say whether the file of the hit's picture is below a root, with links and `..` resolved."""
        name = str(hit.get(IMAGE_PATH) if hit.get(SHARD) is None else hit[SHARD])
        store, mark, _ = name.partition("://")
        is_reached = not mark or store == "file" or any(place.startswith(f"{store}://") for place in self.places)
        if not is_reached or is_foreign(name):
            return False  # opening a store may connect to it
        try:
            place = Folder(find_file(file_of(name))).place
        except (OSError, ValueError, StorageError):  # the path is empty, too long, ambiguous, or holds a NUL
            return False
        return any(place == root or place.startswith(f"{root}/") for root in self.places)


def is_foreign(name: str) -> bool:
    """Say whether a name is a url of the web, a command, or a file inside what another url names."""
    return name.startswith(WEB) or (local_path(name) is None and (is_pipe(name) or "::" in name))


def find_picture(hit: dict[str, Any], roots: Roots | None = None) -> Picture:
    """Read the picture of a hit: the file, or its place in a tar. With roots, only from below them, never the web."""
    path, shard = hit.get(IMAGE_PATH), hit.get(SHARD)
    if path is None:
        return Picture(None)
    if roots is not None and not roots.allow(hit):
        return Picture(None, "it is not below a folder whose pictures are served (pictures_below)")
    if is_pipe(str(path if shard is None else shard)):
        return Picture(None, "it came through a pipe: command, which only you should run again")
    try:
        return Picture(read_elsewhere(str(path)) if shard is None else read_from_shard(hit))
    except Exception as error:  # any store may fail in any way; the hit itself stands  # noqa: BLE001
        return Picture(None, one_line(error))


def read_from_shard(hit: dict[str, Any]) -> bytes:
    """Read a picture from its tar or zip: by the place of its bytes, or by its name if it has none."""
    shard = find_file(str(hit[SHARD]))
    if hit.get(SHARD_OFFSET) is not None:
        offset, size = int(hit[SHARD_OFFSET]), int(hit[SHARD_SIZE])
        checksum = None if local_path(shard) is None else stored_crc(shard, offset, size)
        data = read_blob(BlobRef(shard, offset, size, checksum))
        if len(data) != size:
            raise OSError(f"{hit[SHARD]} has changed since it was embedded")
        return data
    from clip_retrieval.sources.tar_pictures import find_sparse  # zipfile, tarfile: 20 ms of every start
    from clip_retrieval.sources.zips import find_member, is_zip

    find = find_member if is_zip(shard) else find_sparse  # compressed members and sparse files have no place
    return read_blob(find(str(hit[IMAGE_PATH]), shard))


def read_elsewhere(path: str) -> bytes:
    """Read a picture by its image_path: a row of a table, a url of a list, or a file."""
    if is_row(path):
        if path.startswith(WEB):
            raise OSError("it is in a table on the web; download that table, and embed the copy")
        from clip_retrieval.sources.table_pictures import read_picture

        return read_picture(path)
    if path.startswith(WEB):
        from clip_retrieval.network.fetch import fetch  # http, TLS: 25 ms of every start

        return fetch(path, FetchLimits(fetch_retries=0))
    found = split_place(path)
    if found is not None:
        return read_place(*found)
    return read_blob(BlobRef(find_file(path)))


def read_place(file: str, place: int) -> bytes:
    """Return a page as a PNG, or a frame as a JPEG, made by a separate process, since a hostile file may kill it."""
    from clip_retrieval.media.helper import shared_helper

    file, ask = find_file(file), shared_helper().ask
    is_page = is_document(file)
    picture: bytes = ask("picture_of_page", file, place, PAGE_SIDE) if is_page else ask("picture_of_frame", file, place)
    return picture


def file_of(name: str) -> str:
    """Return the file that holds a picture: the table of a row, the PDF or video, else the picture itself."""
    found = split_place(name)
    if found is not None:
        return found[0]
    return name.rpartition("#")[0] if is_row(name) else name


def is_row(path: str) -> bool:
    """Say whether an image_path names a row of a table."""
    if "#" not in path:
        return False
    from clip_retrieval.sources.table_pictures import is_in_table

    return is_in_table(path)


def find_local_file(hit: dict[str, Any]) -> Path | None:
    """Return the file of this machine that is a hit's picture; None if it is in an archive, elsewhere or gone."""
    path = hit.get(IMAGE_PATH)
    if path is None or hit.get(SHARD) is not None or str(path).startswith(WEB) or is_row(str(path)):
        return None
    try:
        found = local_path(find_file(str(path)))
        return found.absolute() if found is not None and found.is_file() else None
    except (OSError, ValueError):  # the path is too long, ambiguous, or holds a NUL
        return None


def find_file(url: str) -> str:
    """Return the name on disk of a file whose real name is not UTF-8, by its name in the metadata.

    Raises OSError if several files have that name in the metadata: any of them may be meant.
    """
    url = literal(url)
    path = local_path(url)
    if REPLACED not in url or path is None or path.exists():
        return url
    found = [Path(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        found = [match for folder in found for match in matches(folder, part)]
    if len(found) > 1:
        raise OSError(
            f"{len(found)} files have the name {url} in the metadata, which has U+FFFD for bytes that are not UTF-8"
        )
    return literal(str(found[0])) if found else url


def matches(folder: Path, name: str) -> list[Path]:
    """Return the entries of a folder that have this name in the metadata."""
    if REPLACED not in name:
        return [folder / name] if (folder / name).exists() else []
    return [path for path in folder.iterdir() if clean(path.name) == name]
