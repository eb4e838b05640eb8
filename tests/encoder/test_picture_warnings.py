"""Warnings of decoders are counted by reason and shown nowhere; others are shown as before."""

from __future__ import annotations

import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

import pytest
from PIL import Image

from clip_retrieval.encoder.images import decode_image
from clip_retrieval.encoder.picture_warnings import counting_warnings, in_one_line, reason_of
from clip_retrieval.errors import ImageError


def with_corrupt_exif() -> bytes:
    """Return a JPEG whose EXIF names a directory beyond its end; its orientation is read by `getexif`."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(file, "MPO", exif=exif)
    whole = file.getvalue()
    place = whole.index(b"Exif\0\0") + 6
    return whole[:place] + b"II*\0\x08\0\0\0\x09\0" + whole[place + 10 :]


def with_broken_fax_line() -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").convert("1").save(file, "TIFF", compression="group4")
    whole = bytearray(file.getvalue())
    whole[60:90] = bytes(30)
    return bytes(whole)


def read_orientation(data: bytes) -> None:
    image = Image.open(io.BytesIO(data))
    image.getexif()


def test_a_warning_of_pillow_is_counted_each_time_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    data = with_corrupt_exif()

    with warnings.catch_warnings(record=True) as shown, counting_warnings() as counts, ThreadPoolExecutor(3) as threads:
        list(threads.map(read_orientation, [data] * 5))

    assert counts.total() >= 5
    assert all(reason.endswith("corrupt EXIF data") for reason in counts)
    assert shown == []
    assert capsys.readouterr().err == ""


def test_other_warnings_are_shown_as_before() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with counting_warnings() as counts:
            warnings.warn("mine", stacklevel=1)

    assert [str(warning.message) for warning in shown] == ["mine"]
    assert not counts


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libtiff is found by Linux's list of libraries")
def test_an_error_of_libtiff_is_counted_and_not_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with counting_warnings() as counts, suppress(ImageError):
        decode_image(with_broken_fax_line())

    assert capfd.readouterr().err == ""
    assert any(reason.startswith("libtiff, ") for reason in counts)
    assert not any("%" in reason for reason in counts)


def test_the_next_block_counts_anew() -> None:
    with counting_warnings():
        read_orientation(with_corrupt_exif())
    with counting_warnings() as counts:
        pass

    assert not counts


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Corrupt EXIF data.  Expecting to read 12 bytes but only got 0. ", "corrupt EXIF data"),
        (
            "Metadata Warning, tag 282 had too many entries: 2, expected 1",
            "metadata Warning, tag N had too many entries",
        ),
        ("Truncated File Read", "truncated File Read"),
        ("", ""),
    ],
)
def test_a_reason_is_what_warnings_of_many_pictures_have_in_common(message: str, reason: str) -> None:
    assert reason_of(message) == reason


def test_the_commonest_reasons_are_named_in_one_line() -> None:
    counts = {"corrupt EXIF data": 1467, **{f"reason {letter}": 5 for letter in "abcd"}, "rare": 2, "rarer": 1}

    line = in_one_line(counts)

    assert line.startswith("1,467 x corrupt EXIF data, 5 x reason a, ")
    assert line.endswith(", 3 others")


def test_blocks_may_overlap_in_several_threads_and_leave_pythons_warnings_as_they_were() -> None:
    before = warnings.showwarning, list(warnings.filters)
    all_inside = Barrier(3)

    def decode(_: int) -> int:
        with counting_warnings() as counts:
            all_inside.wait(60)
            read_orientation(with_corrupt_exif())
            return counts.total()

    with ThreadPoolExecutor(3) as threads:
        assert min(threads.map(decode, range(3))) > 0

    assert (warnings.showwarning, list(warnings.filters)) == before
