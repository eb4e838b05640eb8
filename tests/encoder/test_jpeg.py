"""JPEGs that are decoded straight into an array have Pillow's pixels, and odd files are left to Pillow."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder import jpeg
from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.jpeg import decode_jpeg, jpeg_decoder
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import ImageError

PREPROCESS = Preprocess(224, (0.5,) * 3, (0.5,) * 3)
SIZES = ((341, 256), (256, 341), (225, 225), (17, 9), (1, 1), (640, 480), (1999, 1501))


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("simplejpeg", reason="there are no wheels for this platform")


def save(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(size)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-30, 31, (size[1], size[0], 3), np.int16)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(monkeypatch: pytest.MonkeyPatch, data: bytes) -> NDArray[np.uint8]:
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "jpeg_decoder", lambda: None)
        return read_pixels(data, PREPROCESS, PictureConfig())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"quality": 97}, {"progressive": True}, {"optimize": True}]
)
def test_pixels_are_those_of_pillow(
    size: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save(size, **options)
    for share in (1, 2, 4, 8):
        image = Image.open(io.BytesIO(data))
        image.draft(None, (max(1, size[0] // share), max(1, size[1] // share)))
        found = decode_jpeg(image, data)
        assert found is not None
        np.testing.assert_array_equal(found, np.asarray(image))
    found = read_pixels(data, PREPROCESS, PictureConfig())
    np.testing.assert_array_equal(found, by_pillow(monkeypatch, data))


def test_other_formats_modes_and_damage_are_left_to_pillow() -> None:
    whole = save((64, 48))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    for data in (file.getvalue(), save((8, 8), "L"), save((8, 8), "CMYK"), whole[: len(whole) // 2], whole[:-2]):
        assert decode_jpeg(Image.open(io.BytesIO(data)), data) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_have_the_same_outcome(data: Any) -> None:
    whole = save((300, 260), progressive=data.draw(st.booleans()))
    start = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["cut", "changed", "left out"]))
    count = data.draw(st.integers(1, 40))
    changed = bytes(byte ^ data.draw(st.integers(0, 255)) for byte in whole[start : start + min(count, 3)])
    altered = {
        "cut": whole[:start],
        "changed": whole[:start] + changed + whole[start + len(changed) :],
        "left out": whole[:start] + whole[start + count :],
    }[kind]

    def outcome() -> NDArray[np.uint8] | tuple[str, str]:
        try:
            return read_pixels(altered, PREPROCESS, PictureConfig())
        except ImageError as error:
            return error.reason, str(error)

    found = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "jpeg_decoder", lambda: None)
        wanted = outcome()
    np.testing.assert_array_equal(found, wanted)


def test_without_the_package_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg_decoder.cache_clear()
    try:
        data = save((64, 48))
        assert decode_jpeg(Image.open(io.BytesIO(data)), data) is None
    finally:
        jpeg_decoder.cache_clear()
