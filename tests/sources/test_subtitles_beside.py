"""Which subtitles belong to which video."""

from __future__ import annotations

from clip_retrieval.media.places import VIDEO_SUFFIXES
from clip_retrieval.sources.joining import Joined, join
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES
from clip_retrieval.sources.types import Failure


def texts_of(*names: str) -> dict[str, str | None]:
    """Return the text of each picture, and the reason of each file that is not part of a sample."""
    items = join(sorted(names), wants_images=True, images=IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    return {item.key: item.reason if isinstance(item, Failure) else item.text for item in items}


def test_the_subtitles_of_a_video_are_its_text_the_plain_ones_first() -> None:
    assert texts_of("a.mp4", "a.srt") == {"a.mp4": "a.srt"}
    assert texts_of("a.mp4", "a.vtt", "a.en.srt") == {"a.mp4": "a.vtt", "a.en.srt": "duplicate"}
    assert texts_of("a.mp4", "a.de.srt", "a.EN.vtt") == {"a.mp4": "a.EN.vtt", "a.de.srt": "duplicate"}
    assert texts_of("a.mp4", "a.fr.srt") == {"a.mp4": "a.fr.srt"}


def test_subtitles_of_a_longer_name_are_those_of_that_video() -> None:
    assert texts_of("a.mp4", "a.en.mp4", "a.en.srt") == {"a.mp4": None, "a.en.mp4": "a.en.srt"}
    assert texts_of("x/a.mp4", "y/a.srt") == {"x/a.mp4": None, "y/a.srt": "not_an_image"}


def test_a_caption_beside_a_video_is_the_text_of_all_its_frames() -> None:
    assert texts_of("a.mp4", "a.srt", "a.txt") == {"a.mp4": "a.txt", "a.srt": "duplicate"}


def test_subtitles_without_a_video_are_named() -> None:
    assert texts_of("a.jpg", "a.srt", ".a.srt") == {"a.jpg": None, "a.srt": "not_an_image", ".a.srt": "hidden"}
    assert next(join(["a.mp4", "a.srt"], wants_images=True)) != Joined("a.mp4", "a.srt", None)  # videos are not taken
