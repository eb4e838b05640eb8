"""Pictures of hits: thumbnails in answers, and originals, from files, tars, zips and tables below the roots."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.images import load_image, open_image, to_rgb
from clip_retrieval.encoder.orientation import read_orientation, turn_upright
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ClipRetrievalError, ImageError
from clip_retrieval.layout import IMAGE_PATH, SHARD_COLUMNS
from clip_retrieval.query.pictures import find_picture
from clip_retrieval.server.indices import Generation

KEPT_BYTES, MOST_KEPT = 64 << 20, 50_000  # kept thumbnails; unreadable pictures are kept as None, without bytes
MOST_PIXELS = 100_000_000  # of a picture that becomes a thumbnail
QUALITY = 80
IMAGE = "image"  # key of a row that clip-retrieval 2's clients read
MEDIA_TYPES = {
    "JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp",
    "TIFF": "image/tiff", "AVIF": "image/avif", "ICO": "image/x-icon",
}  # fmt: skip


class Thumbnails:
    """Small JPEGs of an index's pictures by id; the last requested ones are kept."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.kept: OrderedDict[tuple[str, str, int], bytes | None] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def add(
        self, generation: Generation, ids: NDArray[np.int64], rows: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the rows with their pictures as base64; unavailable pictures are left out."""
        if not self.side or not generation.roots.places:
            return list(rows)
        added = []
        for row_id, row in zip(ids.tolist(), rows, strict=True):
            data = self.get(generation, row_id, self.side)
            added.append(row if data is None else row | {IMAGE: base64.b64encode(data).decode()})
        return added

    def get(self, generation: Generation, row_id: int, side: int) -> bytes | None:
        """Return the JPEG of a row's picture, or None if it has no readable one."""
        key = (generation.name, f"{generation.id} {side}", row_id)
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        data = make_thumbnail(read_original(generation, row_id), side)
        with self.lock:
            if key not in self.kept:
                self.kept[key] = data
                self.bytes += len(data or b"")
            while self.bytes > KEPT_BYTES or len(self.kept) > MOST_KEPT:
                self.bytes -= len(self.kept.popitem(last=False)[1] or b"")
        return data


def read_original(generation: Generation, row_id: int) -> bytes | None:
    """Return the bytes of a row's picture; None if it has none below the roots."""
    return find_picture(read_row(generation, row_id), generation.roots).data


def read_row(generation: Generation, row_id: int) -> dict[str, Any]:
    """Return the columns that say where the picture of a row is; none if pictures are not served."""
    metadata = generation.first.metadata
    if metadata is None or not generation.roots.places:
        return {}
    try:
        (row,) = metadata.rows(np.array([row_id], np.int64), (IMAGE_PATH, *SHARD_COLUMNS)).to_pylist() or ({},)
    except ClipRetrievalError:
        return {}
    return row


def make_thumbnail(data: bytes | None, side: int) -> bytes | None:
    """Return an upright JPEG whose sides have at most `side` pixels; None if the bytes are not a picture."""
    if data is None:
        return None
    try:
        with counting_warnings():
            image = open_image(data, MOST_PIXELS)
            image.draft(None, (side, side))  # a JPEG is decoded at a fraction of its size
            picture = to_rgb(load_image(image, MOST_PIXELS))
    except ImageError:
        return None
    small = turn_upright(picture, read_orientation(image))
    small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def media_type(data: bytes) -> str | None:
    """Return the media type of a picture's bytes; None if they are not a picture, and must not be served."""
    try:
        with counting_warnings():
            return MEDIA_TYPES.get(open_image(data).format or "", "application/octet-stream")
    except ImageError:
        return None
