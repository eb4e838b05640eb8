"""Subtitles: what is said at a time, in any of the spellings of srt and WebVTT."""

from __future__ import annotations

import pytest

from clip_retrieval.errors import ImageError
from clip_retrieval.media.places import MOST_LETTERS
from clip_retrieval.media.subtitles import LARGEST, Subtitles

pytest.importorskip("av", reason="subtitles are read by PyAV: pip install av")

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>a dog</i>
{\\an8}runs &amp; barks

2
00:00:02,000 --> 00:00:04,000
caf\u00e9

3
00:01:00,000 --> 00:01:01,000
<b></b>
"""
VTT = """WEBVTT

NOTE a remark

STYLE
::cue { color: red }

first
00:01.000 --> 00:02.000 align:start position:0%
<v Ann>hello</v> <00:01.500><c>there</c>
"""


def test_what_is_said_at_a_time_is_one_line_without_tags() -> None:
    said = Subtitles(SRT.encode(), "a.srt")
    at = {moment: said.at(moment) for moment in (999, 1000, 2200, 2500, 3999, 4000, 60_500)}
    assert at == {
        999: "",
        1000: "a dog runs & barks",
        2200: "a dog runs & barks caf\u00e9",
        2500: "caf\u00e9",
        3999: "caf\u00e9",
        4000: "",
        60_500: "",
    }


def test_webvtt_is_read_without_its_notes_and_voices() -> None:
    said = Subtitles(VTT.encode(), "a.en.VTT")
    assert [said.at(moment) for moment in (0, 1700, 2000)] == ["", "hello there", ""]


def test_each_encoding_is_told_from_the_bytes() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        for text in (SRT, SRT.replace("\n", "\r\n")):
            assert Subtitles(text.encode(encoding), "a.srt").at(3000) == "caf\u00e9", encoding


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.vtt", "WEBVTT"),
        ("a.vtt", "\ufeffWEBVTT - a film\r\n\r\nNOTE\r\nnobody speaks\r\n\r\nSTYLE\r\n::cue {}\r\n"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:01,000\n<i></i>\n"),
    ],
)
def test_subtitles_in_which_nobody_speaks_are_no_failure(name: str, text: str) -> None:
    assert Subtitles(text.encode(), name).at(0) == ""


def test_files_that_say_nothing_or_too_much_are_refused() -> None:
    for data in (b"", bytes(range(256)), b"no subtitles", b"WEBVTT\n\nwords without a time\n"):
        for name in ("a.srt", "a.vtt"):
            with pytest.raises(ImageError, match="nothing that is said"):
                Subtitles(data, name)
    with pytest.raises(ImageError, match="more than"):
        Subtitles(bytes(LARGEST + 1), "a.srt")
    long = "1\n00:00:00,000 --> 00:00:01,000\n" + "word " * MOST_LETTERS
    assert len(Subtitles(long.encode(), "a.srt").at(0)) <= MOST_LETTERS
