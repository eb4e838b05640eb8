"""Pixels equal, bit for bit, those of the transform that open_clip gives its models."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.preprocess import Interpolation, Preprocess, ResizeMode

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SIDES = st.integers(1, 150)
INTERPOLATIONS: tuple[Interpolation, ...] = ("bicubic", "bilinear")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1009 + height).integers(0, 256, (height, width, 3), np.uint8))


def reference(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Return what open_clip's transform holds before it scales by mean and std."""
    transform: Any = open_clip.image_transform(
        preprocess.size,
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode=preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        fill_color=preprocess.fill,
    )
    for step in transform.transforms[:-1]:
        image = step(image)
    pixels: NDArray[np.uint8] = (np.asarray(image) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return pixels


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@settings(max_examples=80, deadline=None)
@given(width=SIDES, height=SIDES, size=st.sampled_from([16, 31, 32]))
@example(width=1, height=1, size=32)
@example(width=32, height=32, size=32)
@example(width=33, height=32, size=32)
@example(width=31, height=150, size=31)
def test_pixels_equal_those_of_open_clip(
    mode: ResizeMode, interpolation: Interpolation, width: int, height: int, size: int
) -> None:
    preprocess = Preprocess(size=size, mean=MEAN, std=STD, resize_mode=mode, interpolation=interpolation)
    image = noise(width, height)

    pixels = preprocess(image)

    assert pixels.shape == (size, size, 3)
    assert (pixels == reference(image, preprocess)).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@settings(max_examples=80, deadline=None)
@given(width=st.integers(5, 150), height=st.integers(5, 150), fill=st.sampled_from([0, 127, 255]))
@example(width=32, height=29, fill=127)
@example(width=25, height=32, fill=127)
@example(width=150, height=5, fill=127)
def test_pixels_of_the_longest_side_equal_those_of_open_clip(
    interpolation: Interpolation, width: int, height: int, fill: int
) -> None:
    preprocess = Preprocess(size=32, mean=MEAN, std=STD, resize_mode="longest", interpolation=interpolation, fill=fill)
    image = noise(width, height)

    pixels = preprocess(image)

    assert (pixels == reference(image, preprocess)).all()


@pytest.mark.parametrize("mode", get_args(ResizeMode))
@pytest.mark.parametrize(("width", "height"), [(4000, 1), (1, 4000), (30000, 3)])
def test_no_shape_is_too_extreme(mode: ResizeMode, width: int, height: int) -> None:
    preprocess = Preprocess(size=224, mean=MEAN, std=STD, resize_mode=mode)

    pixels = preprocess(noise(width, height))

    assert pixels.shape == (224, 224, 3)


def test_an_extreme_shape_is_cut_out_of_the_same_place() -> None:
    """Past the bound on the resized size only the part that the crop keeps is made; it may differ by rounding."""
    preprocess = Preprocess(size=224, mean=MEAN, std=STD)
    image = noise(5000, 10).resize((50000, 100))

    pixels = preprocess(image)

    difference = np.abs(pixels.astype(int) - reference(image, preprocess))
    assert difference.mean() < 2
