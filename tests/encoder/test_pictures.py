"""Bytes to pixels: exact ones are the reference's, fast ones are near them and as safe."""

from __future__ import annotations

import io
from itertools import product
from typing import Any, get_args

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from clip_retrieval import load_encoder
from clip_retrieval.encoder import pictures
from clip_retrieval.encoder.config import Decode, PictureConfig
from clip_retrieval.encoder.images import FORMATS, decode_image, open_image
from clip_retrieval.encoder.jpeg import decode_jpeg
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.preprocess import Preprocess, ResizeMode
from clip_retrieval.errors import ConfigError, ImageError

EXACT, FAST = PictureConfig(decode="exact"), PictureConfig(decode="fast")
DROPPED = PictureConfig(decode="fast", transparency="drop")
BOTH = [EXACT, FAST]
ORIENTATION = 0x0112


def preprocess(mode: ResizeMode = "shortest", size: int = 32) -> Preprocess:
    return Preprocess(size=size, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, fill=127)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return shapes with a little grain: no part is symmetrical."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", orientation: int | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(file, kind, **options)
    return file.getvalue()


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean difference of two pictures in levels of 255."""
    return float(np.abs(a.astype(int) - b).mean())


def outcome(data: bytes, how: PictureConfig) -> str:
    """Return the reason why there are no pixels, or their shape."""
    try:
        return str(read_pixels(data, preprocess(), how).shape)
    except ImageError as error:
        return error.reason


@pytest.mark.parametrize("mode", get_args(ResizeMode))
@pytest.mark.parametrize("size", [(40, 30), (333, 500), (801, 600)])
def test_exact_pixels_are_those_of_the_whole_picture(mode: ResizeMode, size: tuple[int, int]) -> None:
    data = encoded(picture(*size))

    pixels = read_pixels(data, preprocess(mode), EXACT)

    np.testing.assert_array_equal(pixels, preprocess(mode)(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", get_args(ResizeMode))
@pytest.mark.parametrize(
    "size", [(33, 32), (47, 95), (97, 96), (383, 385), (500, 333), (1003, 611), (16, 900), (900, 3)]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fast_pixels_are_near_the_exact_ones(mode: ResizeMode, size: tuple[int, int], kind: str) -> None:
    data = encoded(picture(*size), kind)

    fast, exact = (read_pixels(data, preprocess(mode), how) for how in (FAST, EXACT))

    assert fast.shape == exact.shape
    assert distance(fast, exact) < 1.5


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("is_progressive", [False, True])
def test_every_kind_of_jpeg_is_near_when_fast(subsampling: str, mode: str, is_progressive: bool) -> None:
    data = encoded(
        picture(401, 299).convert(mode), subsampling=subsampling, progressive=is_progressive, restart_marker_blocks=3
    )

    fast, exact = (read_pixels(data, preprocess(), how) for how in (FAST, EXACT))

    assert distance(fast, exact) < 1.5


def test_a_large_jpeg_is_decoded_at_a_fraction_when_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def spy(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
        sizes.append(image.size)
        return decode_jpeg(image, data)

    monkeypatch.setattr(pictures, "decode_jpeg", spy)

    read_pixels(encoded(picture(2401, 1600)), preprocess(size=128), FAST)

    assert sizes == [(601, 400)]
    sizes.clear()
    read_pixels(encoded(picture(4801, 3200)), preprocess(size=224), FAST)

    assert sizes == [(601, 400)]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_thin_lines_are_kept_for_small_models(size: int, kind: str) -> None:
    pixels = np.full((1080, 1920, 3), 255, np.uint8)
    pixels[:, ::7] = pixels[::11] = 0
    data = encoded(Image.fromarray(pixels), kind)

    fast, exact = (read_pixels(data, preprocess(size=size), how) for how in (FAST, EXACT))

    assert distance(fast, exact) < 3


@pytest.mark.parametrize("how", BOTH, ids=get_args(Decode))
def test_of_a_camera_file_with_two_pictures_the_first_is_taken(how: PictureConfig) -> None:
    data = encoded(picture(600, 400), "MPO", save_all=True, append_images=[picture(600, 400, seed=1)])

    pixels = read_pixels(data, preprocess(), how)

    assert distance(pixels, preprocess()(picture(600, 400))) < 3


def transparent(mode: str, width: int = 90, height: int = 60) -> Image.Image:
    """Return a picture in a mode that resizing treats in its own way, with hidden colors if it has alpha."""
    image = picture(width, height).convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda value: 255 if value < 90 else 0))
    return image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "L"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(90, 60), (32, 32), (20, 31)])
def test_exact_pixels_of_every_mode_are_those_of_open_clips_transform(
    mode: str, resize: ResizeMode, size: tuple[int, int]
) -> None:
    image = transparent(mode, *size)
    transform: Any = open_clip.image_transform(32, is_train=False, resize_mode=resize, mean=(0,) * 3, std=(1,) * 3)
    expected = (transform(image).numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)

    pixels = read_pixels(encoded(image, "TIFF"), preprocess(resize), EXACT)

    np.testing.assert_array_equal(pixels, expected)


def test_the_transparent_color_of_a_palette_does_not_matter_when_it_is_dropped() -> None:
    image = transparent("P")

    np.testing.assert_array_equal(
        read_pixels(encoded(image, "PNG", transparency=3), preprocess(), EXACT),
        read_pixels(encoded(image, "PNG"), preprocess(), EXACT),
    )


def in_many_modes() -> dict[str, bytes]:
    """Return a picture, large enough to be averaged before it is resized, in every mode that files have."""
    image, soft = picture(801, 599), transparent("RGBA", 801, 599)
    turned = image.transpose(Image.Transpose.ROTATE_180)
    srgb, lab_profile = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, srgb, lab_profile, outputMode="LAB")
    assert lab is not None
    two_frames: dict[str, Any] = {"save_all": True, "append_images": [turned]}
    return {
        "P": encoded(image.quantize(64), "PNG"),
        "P dithered": encoded(image.convert("P"), "GIF"),
        "P, a color transparent": encoded(image.quantize(64), "PNG", transparency=3),
        "P animated": encoded(image.quantize(64), "GIF", **two_frames),
        "1": encoded(image.convert("1"), "PNG"),
        "L": encoded(image.convert("L"), "PNG"),
        "I;16": encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
        "LA": encoded(soft.convert("LA"), "PNG"),
        "RGB": encoded(image, "PNG"),
        "RGB, a color transparent": encoded(image, "PNG", transparency=image.getpixel((400, 300))),
        "RGB animated": encoded(image, "WEBP", lossless=True, **two_frames),
        "RGBA": encoded(soft, "PNG"),
        "RGBA, nothing transparent": encoded(image.convert("RGBA"), "PNG"),
        "RGBA WebP": encoded(soft, "WEBP", lossless=True),
        "CMYK": encoded(image.convert("CMYK"), "TIFF"),
        "YCbCr": encoded(image.convert("YCbCr"), "TIFF"),
        "LAB": encoded(lab, "TIFF"),
    }


MANY_MODES = in_many_modes()
WITHOUT_INTERPOLATION = {"P", "P dithered", "P, a color transparent", "P animated", "1"}  # in the exact way


@pytest.mark.parametrize("mode", MANY_MODES)
def test_fast_pixels_of_every_mode_are_near_what_is_seen(mode: str) -> None:
    data = MANY_MODES[mode]

    seen = preprocess()(decode_image(data))

    assert distance(read_pixels(data, preprocess(), FAST), seen) < 0.5


@pytest.mark.parametrize("mode", MANY_MODES)
def test_fast_pixels_without_alpha_are_near_the_exact_ones_but_for_palettes(mode: str) -> None:
    data = MANY_MODES[mode]

    fast = read_pixels(data, preprocess(), DROPPED)

    apart = distance(fast, read_pixels(data, preprocess(), EXACT))
    assert apart > 5 if mode in WITHOUT_INTERPOLATION else apart < 1


@pytest.mark.parametrize("mode", ["P", "P dithered", "1"])
def test_fast_embeddings_of_palettes_are_those_of_the_picture_and_exact_ones_are_not(mode: str) -> None:
    encoder = load_encoder("demo")
    ready, data = encoder.info.preprocess, MANY_MODES[mode]
    ways = [read_pixels(data, ready, FAST), read_pixels(data, ready, EXACT), ready(decode_image(data))]

    fast, exact, seen = encoder.encode_images(np.stack(ways))

    assert fast @ seen > 0.998
    assert exact @ seen < 0.99


@pytest.mark.parametrize("decode", get_args(Decode))
def test_white_shows_where_a_picture_is_transparent_and_what_was_hidden_does_not(decode: Decode) -> None:
    image = Image.new("RGBA", (64, 64), (9, 200, 9, 0))

    on_white = read_pixels(encoded(image, "PNG"), preprocess(), PictureConfig(decode=decode, transparency="white"))
    dropped = read_pixels(encoded(image, "PNG"), preprocess(), PictureConfig(decode=decode, transparency="drop"))

    assert np.unique(on_white).tolist() == [255]
    assert np.unique(dropped).tolist() == [0], "resizing weighs colors by their alpha"


def test_exact_drops_alpha_and_fast_does_not_unless_it_is_said() -> None:
    assert PictureConfig(decode="exact").transparency == "drop"
    assert PictureConfig(decode="fast").transparency == "white"
    assert PictureConfig(decode="exact", transparency="white").transparency == "white"
    assert PictureConfig(decode="fast", transparency="drop").transparency == "drop"


def test_fast_pixels_are_the_same_each_time() -> None:
    data = encoded(picture(801, 600))

    assert len({read_pixels(data, preprocess(), FAST).tobytes() for _ in range(3)}) == 1


def test_small_pictures_are_the_same_in_both_ways_up_to_rounding() -> None:
    data = encoded(picture(80, 60))

    fast, exact = (read_pixels(data, preprocess(), how).astype(int) for how in (FAST, EXACT))

    assert np.abs(fast - exact).max() <= 1


@pytest.mark.parametrize("how", BOTH, ids=get_args(Decode))
@pytest.mark.parametrize("mode", get_args(ResizeMode))
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(301, 200), (67, 100)])
def test_a_picture_is_turned_as_its_exif_says_where_that_is_wanted(
    how: PictureConfig, mode: ResizeMode, orientation: int, size: tuple[int, int]
) -> None:
    data = encoded(picture(*size), orientation=orientation, quality=95)
    upright = PictureConfig(decode=how.decode, exif_orientation=True)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = preprocess(mode)(turned)

    pixels = read_pixels(data, preprocess(mode), upright)

    if how.decode == "exact":
        np.testing.assert_array_equal(pixels, expected)
    else:
        assert distance(pixels, expected) < 1.5
        others = [np.rot90(picture, turns) for picture in (expected, expected[::-1]) for turns in range(4)]
        assert min(distance(pixels, other) for other in others[1:]) > 4
    np.testing.assert_array_equal(
        read_pixels(data, preprocess(mode), how),
        read_pixels(encoded(picture(*size), quality=95), preprocess(mode), how),
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("how", BOTH, ids=get_args(Decode))
def test_every_format_with_exif_is_turned_once(kind: str, how: PictureConfig) -> None:
    data = encoded(picture(150, 100), kind, orientation=6)
    expected = preprocess()(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))

    pixels = read_pixels(data, preprocess(), PictureConfig(decode=how.decode, exif_orientation=True))

    assert distance(pixels, expected) < 1.5


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_is_upright(orientation: int) -> None:
    data = encoded(picture(60, 40), orientation=orientation)

    pixels = read_pixels(data, preprocess(), PictureConfig(decode="exact", exif_orientation=True))

    np.testing.assert_array_equal(pixels, read_pixels(data, preprocess(), EXACT))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_costs_no_picture() -> None:
    whole = encoded(picture(60, 40), orientation=6)
    place = whole.index(b"Exif\0\0") + 6
    broken = whole[:place] + b"II*\0\xff\xff\xff\xff" + whole[place + 8 :]

    pixels = read_pixels(broken, preprocess(), PictureConfig(decode="exact", exif_orientation=True))

    np.testing.assert_array_equal(pixels, read_pixels(broken, preprocess(), EXACT))


@pytest.mark.parametrize("how", BOTH, ids=get_args(Decode))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_picture_of_too_many_pixels_is_refused(how: PictureConfig, kind: str) -> None:
    data = encoded(picture(50, 40), kind)

    def limited(max_pixels: int) -> str:
        return outcome(data, PictureConfig(decode=how.decode, max_pixels=max_pixels))

    assert limited(1999) == limited(1) == "too_large"
    assert limited(2000) == "(32, 32, 3)"


def test_a_picture_is_refused_before_its_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "load_image", None)

    assert outcome(encoded(picture(50, 40)), PictureConfig(max_pixels=1999)) == "too_large"


def test_the_limit_on_pixels_may_be_raised() -> None:
    bomb = encoded(Image.new("1", (13_380, 13_380)), "PNG")  # 22 MB as bits, just past Pillow's limit

    assert outcome(bomb, FAST) == "too_large"
    assert open_image(bomb, 13_380**2).size == (13_380, 13_380)


def test_no_pixels_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="max_pixels must be at least 1, not 0"):
        PictureConfig(max_pixels=0)


SEEDS = [
    encoded(picture(120, 90)), encoded(picture(120, 90), progressive=True), encoded(picture(90, 90), orientation=6),
    encoded(picture(120, 90), restart_marker_blocks=1), encoded(picture(120, 90), "PNG"),
    encoded(picture(120, 90), "WEBP"), encoded(picture(120, 90), "GIF"), encoded(picture(120, 90), "BMP"),
    encoded(picture(120, 90), "TIFF", compression="tiff_lzw"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_image_or_an_image_error(data: bytes) -> None:
    for how in BOTH:
        outcome(data, how)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    share=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5]),
)
def test_a_damaged_picture_has_the_same_outcome_in_both_ways(
    seed: bytes, changes: list[tuple[float, int]], share: float
) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[int(place * len(data))] = value
    damaged = bytes(data[: int(share * len(data))])

    outcomes = {
        outcome(damaged, PictureConfig(decode=how.decode, exif_orientation=turned, max_pixels=10**6))
        for how, turned in product(BOTH, [False, True])
    }

    assert len(outcomes) == 1


def test_every_format_that_is_promised_is_known_to_pillow() -> None:
    Image.init()

    assert set(FORMATS) <= set(Image.OPEN)
