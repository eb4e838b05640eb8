"""Small pictures for a terminal: by kitty's protocol, sixel, or half blocks, depending on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps

from clip_retrieval.encoder.images import decode_image, open_image
from clip_retrieval.encoder.orientation import read_orientation, turn_upright
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ImageError
from clip_retrieval.query.pictures import find_picture

LINES = 5  # height of a thumbnail, in lines of the terminal
COLUMNS = 12
SIDE = 160  # pixels that are sent to the terminal: more would take a second for ten hits with sixel


def open_thumbnails() -> Callable[[dict[str, Any]], object]:
    """Return a function from a hit to rich's form of its picture; asks the terminal what it can show."""
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # its warning of an unknown cell size is a traceback
    from textual_image.renderable import Image as Thumbnail  # asks the terminal during its import

    def thumbnail(hit: dict[str, Any]) -> object:
        picture = find_picture(hit)
        small = None if picture.data is None else shrink(picture.data)
        return "" if small is None else Thumbnail(small, width=COLUMNS, height=LINES)

    return thumbnail


def shrink(data: bytes) -> Image.Image | None:
    """Return a small upright picture in a black frame of a thumbnail's shape; None if it cannot be decoded."""
    try:
        with counting_warnings():
            orientation = read_orientation(open_image(data))
            picture = decode_image(data)
    except ImageError:
        return None
    return ImageOps.pad(turn_upright(picture, orientation), (SIDE, SIDE * 2 * LINES // COLUMNS), color="black")
