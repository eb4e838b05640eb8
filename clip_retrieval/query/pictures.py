"""The picture of a hit: from a file, a tar, a zip, a table or a url."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_retrieval.blobs import PIPE, BlobRef, local_path, read_blob
from clip_retrieval.layout import IMAGE_PATH, SHARD, SHARD_OFFSET, SHARD_SIZE
from clip_retrieval.network.fetch import FetchLimits, fetch
from clip_retrieval.sources.table_pictures import is_in_table, read_picture
from clip_retrieval.sources.zips import is_zip, stored_crc

WEB = ("http://", "https://")


@dataclass(frozen=True)
class Picture:
    """A hit's picture: its bytes, or why they could not be read; neither where the hit has none."""

    data: bytes | None
    problem: str | None = None


def find_picture(hit: dict[str, Any]) -> Picture:
    """Read the picture of a hit: the file, or its place in a tar."""
    path, shard = hit.get(IMAGE_PATH), hit.get(SHARD)
    if path is None:
        return Picture(None)
    if str(path if shard is None else shard).startswith(PIPE):
        return Picture(None, "it came through a pipe: command, which only you should run again")
    if shard is not None and hit.get(SHARD_OFFSET) is not None:
        blob = BlobRef(shard, int(hit[SHARD_OFFSET]), int(hit[SHARD_SIZE]))
    else:
        blob = BlobRef(path if shard is None else f"zip://{path}::{shard}")  # compressed members have no place
    try:
        if shard is not None and blob.size is None and not is_zip(shard):
            return Picture(None, "it is not in one piece in its tar (a sparse file): unpack the tar to get it")
        data = read_elsewhere(blob.url) if shard is None else read_blob(with_checksum(blob))
    except Exception as error:  # any store may fail in any way; the hit itself stands  # noqa: BLE001
        return Picture(None, " ".join(str(error).split())[:200] or type(error).__name__)
    if blob.size is not None and len(data) != blob.size:
        return Picture(None, f"{shard} has changed since it was embedded")
    return Picture(data)


def with_checksum(blob: BlobRef) -> BlobRef:
    """Add the checksum that a zip keeps of a member whose place is known."""
    if blob.size is None or local_path(blob.url) is None:
        return blob
    return blob._replace(crc=stored_crc(blob.url, blob.offset, blob.size))


def read_elsewhere(path: str) -> bytes:
    """Read a picture by its image_path: a row of a table, a url of a list, or a file."""
    if path.startswith(WEB):
        return fetch(path, FetchLimits(fetch_retries=0))
    return read_picture(path) if is_in_table(path) else read_blob(BlobRef(path))
