"""Joins files of folders and archives to samples: picture, caption and json share a path up to the suffix."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES, METADATA_SUFFIX, TEXT_SUFFIX, split_key
from clip_retrieval.sources.types import Failure
from clip_retrieval.words import is_hidden

logger = logging.getLogger(__name__)

HIDDEN = "names that start with a dot, and what is in __MACOSX, are left out"
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

    The row is each picture or, where there is none or it is not wanted, the caption; where there is neither, it is the
    json, to be reported. Of two files that differ in the case of their suffix only, the first one counts. `images` are
    the suffixes of pictures.
    """
    beside = find_beside(names, images)
    for name in names:
        refusal = refusal_of(name, images)
        if refusal is not None:
            yield refusal
            continue
        key, suffix = split_key(name)
        files = beside.get(key, NOTHING)
        has_image_rows = files.has_image and (wants_images or files.text is None)
        if suffix in images:
            if has_image_rows:
                yield Joined(name, files.text, files.metadata)
        elif (first := getattr(files, SLOTS[suffix])) != name:
            detail = f"{first} is the {SLOTS[suffix]} of this sample already"
            yield Failure(name, "", "other", "duplicate", detail)
        elif not has_image_rows and name == (files.text or files.metadata):
            yield Joined(None, files.text, files.metadata)


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
        return Failure(path, "", "other", "not_an_image", "no image, .txt or .json suffix")
    return None


def switch_off_missing(config: SourceConfig, *, has_images: bool, has_texts: bool) -> SourceConfig:
    """Disable captions or pictures if the input has none, as clip-retrieval 2 does."""
    if config.enable_text and not has_texts and has_images and config.enable_image:
        logger.info("no .txt caption in %s: embedding pictures only", config.input_dataset)
        return dataclasses.replace(config, enable_text=False)
    if config.enable_image and not has_images and has_texts and config.enable_text:
        logger.info("no picture in %s: embedding captions only", config.input_dataset)
        return dataclasses.replace(config, enable_image=False)
    return config
