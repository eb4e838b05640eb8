"""HEIC and AVIF: read if the plug-in is installed, else refused with the package that is needed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, features

from clip_retrieval.encoder import plugins
from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.images import decode_image, open_image
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.plugins import plugin_format
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import ImageError
from clip_retrieval.other_files import read_brands

HEIC_HEADER = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100)
AVIF_HEADER = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(100)


def encoded(kind: str, orientation: int = 1) -> bytes:
    """Return a picture of 90 x 60, red in its upper left quarter, else blue."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = Image.new("RGB", (90, 60), "blue")
    picture.paste("red", (0, 0, 45, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, kind, exif=exif.tobytes())
    return file.getvalue()


def red_corner(data: bytes, pictures: PictureConfig) -> tuple[bool, bool]:
    """Return whether the red quarter is at the bottom, and whether at the right."""
    pixels = read_pixels(data, Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash"), pictures)
    row, column = np.unravel_index(pixels[..., 0].astype(int).reshape(2, 16, 2, 16).sum(axis=(1, 3)).argmax(), (2, 2))
    return bool(row), bool(column)


@pytest.fixture(autouse=True)
def _forgetting_plugins() -> Iterator[None]:
    plugins.open_heif.cache_clear()
    plugins.open_avif.cache_clear()
    yield
    plugins.open_heif.cache_clear()
    plugins.open_avif.cache_clear()


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_picture_is_read(kind: str) -> None:
    image = decode_image(encoded(kind))

    assert (image.mode, image.size) == ("RGB", (90, 60))
    red = np.asarray(image)[..., 0]
    assert red[10, 10] > 200
    assert red[10, 80] < 60


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_heic_is_upright_always_and_avif_where_that_is_wanted(decode: str) -> None:
    as_stored = PictureConfig(decode=decode)  # type: ignore[arg-type]
    upright = PictureConfig(decode=decode, exif_orientation=True)  # type: ignore[arg-type]
    avif, heic = encoded("AVIF", 6), encoded("HEIF", 6)

    assert (red_corner(avif, as_stored), red_corner(avif, upright)) == ((False, False), (False, True))
    assert red_corner(heic, as_stored) == red_corner(heic, upright) == (False, True)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_picture_of_too_many_pixels_is_refused(kind: str) -> None:
    data = encoded(kind)

    with pytest.raises(ImageError) as caught:
        open_image(data, 90 * 60 - 1)

    assert caught.value.reason == "too_large"
    assert open_image(data, 90 * 60).size == (90, 60)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_picture_is_an_image_error(kind: str, share: float) -> None:
    data = encoded(kind)

    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(share * len(data))])

    assert caught.value.reason in {"truncated", "decode"}


def test_heic_without_its_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    with pytest.raises(ImageError, match="pip install pillow-heif") as caught:
        decode_image(HEIC_HEADER)

    assert caught.value.reason == "needs_plugin"


def test_avif_without_its_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    monkeypatch.setitem(sys.modules, "pillow_avif", None)

    with pytest.raises(ImageError, match="pip install pillow-avif-plugin") as caught:
        decode_image(AVIF_HEADER)

    assert caught.value.reason == "needs_plugin"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", set()),
        (b"\0\0\0\x18ftyp", {b""}),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42", {b"isom", b"mp42"}),
        (b"\xff\xff\xff\xffftypheic", {b"heic"}),
        (b"\xff\xd8\xff\xe0\0\0\0\0", set()),
    ],
)
def test_brands_are_read_out_of_the_first_bytes(data: bytes, expected: set[bytes]) -> None:
    assert read_brands(data) == expected


def test_a_film_needs_no_plugin_and_is_no_picture() -> None:
    film = b"\0\0\0\x18ftypisom\0\0\0\0mp42" + bytes(100)

    assert plugin_format(film) is None
    with pytest.raises(ImageError, match="no picture format recognised"):
        decode_image(film)
