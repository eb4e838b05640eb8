"""Thumbnails in sheets of 1,024: the page holds a few large pictures instead of thousands of small ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_retrieval.encoder.images import decode_image, open_image
from clip_retrieval.encoder.orientation import read_orientation, turn_upright
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ImageError
from clip_retrieval.layout import IMAGE_PATH
from clip_retrieval.map.rows import Rows
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import Advance
from clip_retrieval.query.pictures import WEB, find_picture

TILE_SIDE, COLUMNS = 64, 32
TILES = COLUMNS * COLUMNS
ROWS_AT_ONCE = 64
NO_WEB = "it is on the web, and a map fetches nothing from there"


@dataclass
class Atlas:
    """Pictures of some points, tile after tile."""

    tiles: list[int] = field(default_factory=list)  # the point of each tile
    sheets: list[str] = field(default_factory=list)  # JPEG in base64
    problems: list[str] = field(default_factory=list)
    canvas: Image.Image | None = None

    def add(self, point: int, picture: Image.Image) -> None:
        row, column = divmod(len(self.tiles) % TILES, COLUMNS)
        if self.canvas is None:
            self.canvas = Image.new("RGB", (TILE_SIDE * COLUMNS, TILE_SIDE * COLUMNS), "white")
        self.canvas.paste(picture, (column * TILE_SIDE, row * TILE_SIDE))
        self.tiles.append(point)
        if len(self.tiles) % TILES == 0:
            self.close()

    def close(self) -> None:
        """Encode the current sheet, only as high as it is filled."""
        if self.canvas is None:
            return
        filled = (len(self.tiles) - 1) % TILES // COLUMNS + 1
        buffer = io.BytesIO()
        self.canvas.crop((0, 0, TILE_SIDE * COLUMNS, TILE_SIDE * filled)).save(buffer, "JPEG", quality=80)
        self.sheets.append(base64.b64encode(buffer.getvalue()).decode())
        self.canvas = None


def make_atlas(rows: Rows, ids: NDArray[np.int64], points: NDArray[np.int64], advance: Advance) -> Atlas:
    """Read the pictures of some points (rows `ids[point]`); memory holds one sheet and a few pictures."""
    atlas = Atlas()
    with ThreadPoolExecutor(count_cores()) as threads:
        for start in range(0, len(points), ROWS_AT_ONCE):
            some = points[start : start + ROWS_AT_ONCE]
            for point, made in zip(some.tolist(), threads.map(make_tile, read_hits(rows, ids[some])), strict=True):
                if isinstance(made, str):
                    atlas.problems.append(made)
                else:
                    atlas.add(point, made)
            advance(len(some))
    atlas.close()
    return atlas


def read_hits(rows: Rows, ids: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    assert rows.metadata is not None
    yield from rows.metadata.rows(ids).to_pylist()


def make_tile(hit: dict[str, Any]) -> Image.Image | str:
    """Return the middle of a picture as a tile, or the reason why there is none."""
    if str(hit.get(IMAGE_PATH)).startswith(WEB):
        return NO_WEB
    picture = find_picture(hit)
    if picture.data is None:
        return picture.problem or "no picture"
    try:
        with counting_warnings():
            image = turn_upright(decode_image(picture.data), read_orientation(open_image(picture.data)))
    except ImageError as error:
        return str(error)
    return ImageOps.fit(image, (TILE_SIDE, TILE_SIDE), Image.Resampling.BILINEAR)
