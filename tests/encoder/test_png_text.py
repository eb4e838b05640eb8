"""PNG files with large text and profiles are read, without inflating what is not needed."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.images import decode_image
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.png_text import without_large_text
from clip_retrieval.encoder.preprocess import Preprocess

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
LARGE = 3 << 20
XMP = b"XML:com.adobe.xmp"
TURNED = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PREPROCESS = Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(*chunks: bytes, after: bytes = b"") -> bytes:
    """Return the picture with chunks before its pixels, and one after them."""
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    plain = file.getvalue()
    first, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:first] + b"".join(chunks) + plain[first:end] + after + plain[end:]


def noise(size: int) -> bytes:
    return np.random.default_rng(1).integers(1, 127, size, dtype=np.uint8).tobytes()


MAKE_CHUNK: dict[str, Callable[[], bytes]] = {
    "tEXt": lambda: chunk(b"tEXt", b"workflow\0" + noise(70 << 20)),
    "zTXt": lambda: chunk(b"zTXt", b"prompt\0\0" + zlib.compress(noise(LARGE), 1)),
    "iTXt": lambda: chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(noise(LARGE), 1)),
    "iCCP": lambda: chunk(b"iCCP", b"scanner\0\0" + zlib.compress(noise(LARGE), 1)),
    "XMP": lambda: chunk(b"iTXt", XMP + b"\0\1\0\0\0" + zlib.compress(noise(LARGE), 1)),
    "bomb": lambda: chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(200 << 20), 9)),
    "broken": lambda: chunk(b"iTXt", XMP + b"\0\1\0\0\0" + noise(5000)),
}


@functools.cache
def large_chunk(name: str) -> bytes:
    """Return a chunk, made on first use: two processes collect these tests, and one runs them."""
    return MAKE_CHUNK[name]()


@pytest.mark.parametrize("name", MAKE_CHUNK)
@pytest.mark.parametrize("place", ["before", "after"])
def test_large_text_costs_no_picture(name: str, place: str) -> None:
    data = png(large_chunk(name)) if place == "before" else png(after=large_chunk(name))

    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(IMAGE))


def test_a_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    inflated: list[int] = []
    original = PngImagePlugin._safe_zlib_decompress

    def spy(data: bytes) -> bytes:
        text = original(data)
        inflated.append(len(text))
        return text

    monkeypatch.setattr(PngImagePlugin, "_safe_zlib_decompress", spy)

    decode_image(png(large_chunk("bomb"), chunk(b"zTXt", b"small\0\0" + zlib.compress(b"text"))))

    assert inflated == [4]


@pytest.mark.parametrize(
    "xmp",
    [
        chunk(b"iTXt", XMP + b"\0\0\0\0\0" + TURNED + b" " * 5000),
        chunk(b"iTXt", XMP + b"\0\1\0\0\0" + zlib.compress(TURNED + noise(5000).replace(b"<", b" "))),
    ],
    ids=["plain", "compressed"],
)
def test_the_orientation_that_xmp_names_is_kept(xmp: bytes) -> None:
    upright = PictureConfig(decode="exact", exif_orientation=True)

    pixels = read_pixels(png(large_chunk("zTXt"), xmp), PREPROCESS, upright)

    np.testing.assert_array_equal(pixels, PREPROCESS(IMAGE.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("cut", [1, 8, 12, 500, 2000])
def test_other_bytes_and_cut_files_are_left_alone(cut: int) -> None:
    whole = png(chunk(b"tEXt", b"short\0text"))

    assert without_large_text(whole) is whole
    assert without_large_text(whole[:cut]) == whole[:cut]
    assert without_large_text(b"\xff\xd8\xff\xe0tEXt") == b"\xff\xd8\xff\xe0tEXt"
