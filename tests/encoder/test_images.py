"""Bytes of any format and mode to RGB."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.images import decode_image, open_image, to_rgb
from clip_retrieval.errors import ImageError

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def decoded(image: Image.Image) -> NDArray[np.uint8]:
    result = decode_image(png(image))
    assert result.mode == "RGB"
    return np.asarray(result)


def test_rgb_comes_back_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)

    assert (decoded(Image.fromarray(pixels)) == pixels).all()


def test_16_bit_gray_keeps_its_range() -> None:
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)

    assert (decoded(image) == RAMP[..., None]).all()


def test_a_dark_16_bit_picture_stays_dark() -> None:
    image = Image.fromarray(RAMP.astype(np.uint16))

    assert decoded(image).max() <= 1


def test_32_bit_tiff_keeps_its_range() -> None:
    file = io.BytesIO()
    Image.fromarray(RAMP.astype(np.int32) * 257).save(file, "TIFF")

    assert (np.asarray(decode_image(file.getvalue())) == RAMP[..., None]).all()


def test_float_tiff_from_0_to_1_keeps_its_range() -> None:
    file = io.BytesIO()
    Image.fromarray(RAMP.astype(np.float32) / 255).save(file, "TIFF")

    assert (np.asarray(decode_image(file.getvalue())) == RAMP[..., None]).all()


def test_a_palette_becomes_colors_before_resizing() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)

    assert decoded(image).tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))

    assert decoded(image.convert(mode)).tolist() == [[[0] * 3, [255] * 3]]


def test_half_transparency_is_half_white() -> None:
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))

    assert decoded(image).tolist() == [[[127] * 3]]


def test_a_transparent_color_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=1)

    assert np.asarray(decode_image(file.getvalue())).tolist() == [[[255, 0, 0], [255] * 3]]


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)

    assert decoded(image).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("mode", "alpha", "expected"),
    [
        ("RGBA", 0, [255] * 3),
        ("LA", 0, [255] * 3),
        ("RGBa", 0, [255] * 3),
        ("La", 0, [255] * 3),
        ("RGBA", 255, [0] * 3),
    ],
)
def test_alpha_of_every_mode_is_laid_on_white(mode: str, alpha: int, expected: list[int]) -> None:
    bands = len(mode)
    image = Image.frombytes(mode, (1, 1), bytes([0] * (bands - 1) + [alpha]))

    assert np.asarray(to_rgb(image)).tolist() == [[expected]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
def test_alpha_of_every_mode_can_be_thrown_away(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (255, 255, 255, 0))
    given = image.convert("RGB").convert(mode) if mode in {"P", "RGB", "L", "1"} else image.convert(mode)
    if mode in {"P", "RGB", "L", "1"}:
        given.info["transparency"] = {"P": bytes(256), "RGB": (255, 255, 255)}.get(mode, 255)

    assert np.asarray(to_rgb(given, "drop")).tolist() == [[[0] * 3, [255] * 3]]
    assert ("transparency" in given.info) == (mode in {"P", "RGB", "L", "1"}), "the caller's picture stays as it is"


def test_half_transparent_palette_colors_are_half_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([128, 255]))

    assert np.asarray(decode_image(file.getvalue())).tolist() == [[[127] * 3, [0, 0, 255]]]


def test_lab_tiff_has_its_colors() -> None:
    file = io.BytesIO()
    Image.frombytes("LAB", (1, 1), bytes([128, 0, 0])).save(file, "TIFF")

    assert np.asarray(decode_image(file.getvalue())).tolist() == [[[119] * 3]]


def cmyk_jpeg(red: int, green: int, blue: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (red, green, blue)).convert("CMYK").save(file, "JPEG", quality=95)
    return file.getvalue()


def ycck_jpeg(red: int, green: int, blue: int) -> bytes:
    """Return a JPEG of luma, chroma and black, which Adobe marks as transform 2; Pillow writes CMYK, inverted."""
    ink = Image.new("RGB", (1, 1), (255 - red, 255 - green, 255 - blue)).convert("YCbCr")
    luma = [255 - int(value) for value in np.asarray(ink)[0, 0]]
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (*luma, 0)).save(file, "JPEG", quality=95)
    data = file.getvalue()
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\x02" + data[transform + 1 :]


@pytest.mark.parametrize("write", [cmyk_jpeg, ycck_jpeg])
def test_cmyk_jpeg_has_its_colors(write: Callable[[int, int, int], bytes]) -> None:
    mean = np.asarray(decode_image(write(200, 40, 90))).reshape(-1, 3).mean(axis=0)

    assert np.abs(mean - [200, 40, 90]).max() < 5


def test_an_animation_gives_its_first_frame() -> None:
    file = io.BytesIO()
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    red.save(file, "GIF", save_all=True, append_images=[blue], duration=99)

    assert np.asarray(decode_image(file.getvalue()))[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)

    assert decode_image(file.getvalue()).size == (8, 4)


def test_a_postscript_program_is_no_picture_and_is_not_run() -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"

    with pytest.raises(ImageError, match="no picture format recognised") as caught:
        decode_image(program)

    assert caught.value.reason == "decode"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_picture_is_an_image_error(kind: str, share: float) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, kind)
    payload = file.getvalue()

    with pytest.raises(ImageError) as caught:
        decode_image(payload[: int(len(payload) * share)])

    assert caught.value.reason in {"truncated", "decode"}
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><title>404</title>", "a web page"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2", "a video (MP4 or QuickTime)"),
        (b"\x1aE\xdf\xa3\x01\x00", "a video (Matroska or WebM)"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "a video (AVI)"),
        (b"PK\x03\x04", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>", "an XML file"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "an XML file"),
        ("<?xml version='1.0' encoding='utf-16'?><a/>".encode("utf-16"), "an XML file"),
        (b'{"error": "not found"}', "a JSON file"),
        (b' [\n{"a": 1}]', "a JSON file"),
        (b"{}", "a JSON file"),
        (b"404: Not Found", "a text file"),
        (b"<a note>", "an XML file"),
        (b"< 3 >", "a text file"),
        (b"{not json}", "a text file"),
        (b"a" * 1023 + "ö".encode(), "a text file"),
        ("plain text\r\n".encode("utf-16"), "a text file"),
        (bytes(5000), "nothing but zeros"),
        (b"\x1f\x8b\x08\x00", "a file compressed with gzip"),
        (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "an Office document"),
        (b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument.text", "an OpenDocument file"),
        (b"PK\x05\x06" + bytes(18), "a zip archive with nothing in it"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
        (b"a.jpg" + bytes(252) + b"ustar\x0000", "a tar"),
        (bytes(128) + b"DICM\x02\x00", "a DICOM picture"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL picture"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n\x00", "a JPEG XL picture"),
        (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom", "a camera's raw picture"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw picture"),
        (b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00M4A isom", "a sound file"),
        (b"RIFF\x00\x00\x00\x00WAVE", "a sound file"),
        (b"\xff\xd8\xff\xe0\x00", "a JPEG whose header is damaged or cut off"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a PNG whose header is damaged or cut off"),
        (b"RIFF\x00\x00\x00\x00WEBP", "a WebP whose header is damaged or cut off"),
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(data: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=re.escape(f"no picture format recognised: it is {what}")) as caught:
        open_image(data)
    assert caught.value.reason == "decode"


@pytest.mark.parametrize(
    "data", [b"text\x00", b"caf\xe9 \xff", bytes(2000) + b"\x01", b"RIFF\x00\x00\x00\x00sfbk", b"\x01\x02"]
)
def test_a_file_that_does_not_say_what_it_is_is_called_nothing(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert str(caught.value).endswith("no picture format recognised")
