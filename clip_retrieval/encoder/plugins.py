"""HEIC and AVIF, which Pillow reads with plug-ins; these are loaded when the first such picture is found."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from PIL import Image, features

from clip_retrieval.errors import ImageError
from clip_retrieval.other_files import AVIF_BRANDS, HEIC_BRANDS, read_brands


def plugin_format(data: bytes) -> str | None:
    """Return "HEIF" or "AVIF" for such data, None for other data; raises ImageError if the plug-in is not installed."""
    brands = read_brands(data)
    if brands & AVIF_BRANDS:
        open_avif()
        return "AVIF"
    if brands & HEIC_BRANDS:
        open_heif()
        return "HEIF"
    return None


@cache
def open_heif() -> None:
    # pi_heif, the same without the encoder, is some versions behind: damaged files crash it.
    open_with("pillow_heif", "HEIC pictures are read by a package: pip install pillow-heif").register_heif_opener()


@cache
def open_avif() -> None:
    Image.init()
    if "AVIF" not in Image.OPEN or not features.check("avif"):
        open_with("pillow_avif", "AVIF pictures are read by Pillow 11.3 or later, or pip install pillow-avif-plugin")


def open_with(package: str, advice: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImageError("needs_plugin", advice) from error
