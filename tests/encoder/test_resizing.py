"""The vector code's pixels are Pillow's except for rounding; if it cannot be used, they are Pillow's."""

from __future__ import annotations

import platform
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder import resizing
from clip_retrieval.encoder.preprocess import Interpolation, Preprocess, Window
from clip_retrieval.encoder.resizing import resize_near, vector_code

HAS_WHEELS = (sys.platform, platform.machine()) in {("linux", "x86_64"), ("darwin", "arm64"), ("darwin", "x86_64")}
SIZES = [(340, 256), (256, 256), (225, 224), (640, 480), (97, 190), (30, 20), (1, 1), (3000, 400), (1500, 2100)]
MOST = 2  # levels of 255: each of two passes rounds


@pytest.fixture(params=["vector code", "Pillow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(resizing, "vector_code", lambda: None)
    return str(request.param)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height))
    values = np.asarray(coarse, np.int16) + rng.integers(-40, 41, (height, width, 3), np.int16)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert(mode)


def by_pillow(image: Image.Image, window: Window, interpolation: Interpolation, gap: float) -> NDArray[np.int16]:
    resampling = Image.Resampling[interpolation.upper()]
    return np.asarray(image.resize(window.size, resampling, window.box, gap).convert("RGB"), np.int16)


def window_of(width: int, height: int, size: int = 224) -> Window:
    preprocess = Preprocess(size, (0.5,) * 3, (0.5,) * 3)
    return preprocess.window(preprocess.fit(width, height), (width, height))


@pytest.mark.skipif(not HAS_WHEELS, reason="there are no wheels of cykooz-resizer for this machine")
def test_the_vector_code_is_there() -> None:
    assert vector_code() is not None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_pillow_but_for_rounding(size: tuple[int, int], interpolation: Interpolation) -> None:
    image, window = noise(*size), window_of(*size)
    pixels = resize_near(image, window, interpolation, reducing_gap=100.0)  # so that no block is averaged
    difference = np.abs(pixels - by_pillow(image, window, interpolation, 100.0))
    assert difference.max() <= MOST
    assert difference.mean() < 0.02


def test_a_very_tall_picture_is_near_too() -> None:
    image, window = noise(97, 500), window_of(97, 500)  # Pillow resizes its columns first
    assert np.abs(resize_near(image, window, "bicubic", 100.0) - by_pillow(image, window, "bicubic", 100.0)).mean() < 1


@pytest.mark.parametrize("size", [(1500, 2100), (1999, 1501), (3000, 400)])
@pytest.mark.parametrize("gap", [1.0, 2.0, 4.0])
def test_large_pictures_are_averaged_as_by_pillow(size: tuple[int, int], gap: float) -> None:
    image, window = noise(*size), window_of(*size, size=100)
    difference = np.abs(resize_near(image, window, "bicubic", gap) - by_pillow(image, window, "bicubic", gap))
    assert difference.max() <= MOST


def test_a_window_that_begins_within_a_pixel_is_met() -> None:
    image = noise(500, 400)
    window = Window(box=(33.4, 20.7, 410.2, 399.9), size=(64, 64), left=0, top=0)
    assert (
        np.abs(resize_near(image, window, "bicubic", 100.0) - by_pillow(image, window, "bicubic", 100.0)).max() <= MOST
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_modes_with_alpha_are_resized_by_pillow(mode: str) -> None:
    image, window = noise(300, 200, mode), window_of(300, 200)
    assert (resize_near(image, window, "bicubic", 2.0) == by_pillow(image, window, "bicubic", 2.0)).all()


def test_no_interpolation_is_pillows() -> None:
    image, window = noise(300, 200), window_of(300, 200)
    assert (resize_near(image, window, "nearest", 2.0) == by_pillow(image, window, "nearest", 2.0)).all()


@pytest.mark.usefixtures("way")
def test_either_way_gives_pixels_of_the_same_shape() -> None:
    image, window = noise(333, 222), window_of(333, 222)
    pixels = resize_near(image, window, "bicubic", 2.0)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - by_pillow(image, window, "bicubic", 2.0)).max() <= MOST
