"""Joins files of folders and archives to samples: picture, caption and json share a path up to the suffix."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clip_retrieval.media.places import VIDEO_SUFFIXES, kind_of
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES, METADATA_SUFFIX, SUBTITLE_SUFFIXES, TEXT_SUFFIX, split_key
from clip_retrieval.sources.types import Failure
from clip_retrieval.words import is_hidden

logger = logging.getLogger(__name__)

HIDDEN = "names that start with a dot, and what is in __MACOSX, are left out"
ENGLISH = ".en"  # which most models were trained on
SLOTS = {TEXT_SUFFIX: "text", METADATA_SUFFIX: "metadata"}


class Joined(NamedTuple):
    """The file names of one sample; `image` is None for a sample that is a caption alone."""

    image: str | None
    text: str | None
    metadata: str | None

    @property
    def key(self) -> str:
        return self.image or self.text or self.metadata or ""


@dataclass(slots=True)
class Beside:
    """The caption and json that share a path up to the suffix, and whether a picture does too."""

    text: str | None = None
    metadata: str | None = None
    has_image: bool = False


NOTHING = Beside(has_image=True)


def join(
    names: Sequence[str], *, wants_images: bool, images: Collection[str] = IMAGE_SUFFIXES
) -> Iterator[Joined | Failure]:
    """Yield the samples of some files, and what belongs to none, in the order of the names.

    The row is each picture or, if there is none or it is not wanted, the caption. If there is neither, it is the json,
    to be reported. Of two files that differ only in the case of their suffix, the first one counts. `images` are the
    suffixes of pictures, and of files that hold many. The text of a video without a caption is its subtitles.
    """
    beside, subtitles = find_beside(names, images), find_subtitles(names, images)
    for name in names:
        refusal = subtitles.refusal_of(name, beside) if name in subtitles.owners else refusal_of(name, images)
        if refusal is not None:
            yield refusal
            continue
        key, suffix = split_key(name)
        if name in subtitles.owners:
            continue
        files = beside.get(key, NOTHING)
        has_image_rows = files.has_image and (wants_images or files.text is None)
        if suffix in images:
            if has_image_rows:
                yield Joined(name, files.text or subtitles.of(key, suffix), files.metadata)
        elif (first := getattr(files, SLOTS[suffix])) != name:
            detail = f"{first} is the {SLOTS[suffix]} of this sample already"
            yield Failure(name, "", "other", "duplicate", detail)
        elif not has_image_rows and name == (files.text or files.metadata):
            yield Joined(None, files.text, files.metadata)


@dataclass(frozen=True)
class Subtitles:
    """The subtitles of each video, by its path without suffix."""

    by_key: Mapping[str, str]
    owners: Mapping[str, str]  # the path without suffix of the video that subtitles are for

    def of(self, key: str, suffix: str) -> str | None:
        return self.by_key.get(key) if suffix in VIDEO_SUFFIXES else None

    def refusal_of(self, name: str, beside: Mapping[str, Beside]) -> Failure | None:
        """Return why subtitles are not used: the video has a caption, or subtitles that take precedence."""
        key = self.owners[name]
        text = beside.get(key, NOTHING).text or self.by_key[key]
        return (
            None
            if text == name
            else Failure(name, "", "other", "duplicate", f"{text} is the text of this video already")
        )


def find_subtitles(names: Sequence[str], images: Collection[str]) -> Subtitles:
    """Return the subtitles next to videos: `a.srt` before `a.vtt`, `a.en.srt` and those in other languages."""
    wanted = [name for name in names if name.lower().endswith(SUBTITLE_SUFFIXES) and not is_hidden(name)]
    if not wanted or not VIDEO_SUFFIXES & set(images):
        return Subtitles({}, {})
    videos = {key for key, suffix in map(split_key, names) if suffix in VIDEO_SUFFIXES and suffix in images}
    found: dict[str, list[tuple[bool, bool, int, str]]] = {}
    for name in wanted:
        key, suffix = split_key(name)
        stem, language = (key, "") if key in videos else split_key(key)
        if stem in videos:
            order = bool(language), language != ENGLISH, SUBTITLE_SUFFIXES.index(suffix), name
            found.setdefault(stem, []).append(order)
    owners = {name: stem for stem, orders in found.items() for *_, name in orders}
    return Subtitles({stem: min(orders)[-1] for stem, orders in found.items()}, owners)


def find_beside(names: Sequence[str], images: Collection[str]) -> dict[str, Beside]:
    """Return captions and jsons by path without suffix; pictures without either are not stored, to save memory."""
    beside: dict[str, Beside] = {}
    for name in names:
        key, suffix = split_key(name)
        if suffix in SLOTS:
            files = beside.setdefault(key, Beside())
            if getattr(files, SLOTS[suffix]) is None:
                setattr(files, SLOTS[suffix], name)
    for name in names if beside else ():
        key, suffix = split_key(name)
        if suffix in images and key in beside:
            beside[key].has_image = True
    return beside


def refusal_of(path: str, images: Collection[str]) -> Failure | None:
    """Return why a file cannot be part of a sample, or None; links to folders end with a slash."""
    if path.endswith("/"):
        return Failure(path, "", "other", "linked_folder", "a link to a folder is not followed; name it as the input")
    if is_hidden(path):
        return Failure(path, "", "other", "hidden", HIDDEN)
    suffix = split_key(path)[1]
    if suffix not in images and suffix not in SLOTS:
        is_held = kind_of(path) is not None
        detail = "PDFs and videos are read from folders alone" if is_held else "no image, .txt or .json suffix"
        return Failure(path, "", "other", "not_an_image", detail)
    return None


def switch_off_missing(config: SourceConfig, *, has_images: bool, has_texts: bool) -> SourceConfig:
    """Disable captions or pictures if the input has none, like clip-retrieval 2."""
    if config.enable_text and not has_texts and has_images and config.enable_image:
        logger.info("no .txt caption in %s: embedding pictures only", config.input_dataset)
        return dataclasses.replace(config, enable_text=False)
    if config.enable_image and not has_images and has_texts and config.enable_text:
        logger.info("no picture in %s: embedding captions only", config.input_dataset)
        return dataclasses.replace(config, enable_image=False)
    return config
