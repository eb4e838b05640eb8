"""The inputs of the small commands: pictures by path, texts by line, classes by folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.blobs import read_file
from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.picture_suffixes import has_image_suffix, pictures_below
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import ImageError, SourceError
from clip_retrieval.words import counted, is_hidden

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A picture that could not be used, and why."""

    image: str
    reason: str  # one word
    detail: str


@dataclass(frozen=True)
class ClassFolder:
    """A class of a labeled data set, named after its folder."""

    name: str
    pictures: tuple[Path, ...]


def list_pictures(places: Sequence[str]) -> list[Path]:
    """Return the pictures in the order of `places`; pictures in and below a folder are sorted by path.

    A file that is named is taken with any suffix.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = pictures_below(path)
            if not inside:
                raise SourceError(
                    f"{place} holds no picture: no file with a suffix such as .jpg or .png that is not hidden"
                )
            found += inside
        elif path.is_file() or path.is_symlink():  # a link to nothing is named next to other pictures that fail
            found.append(path)
        else:
            raise SourceError(f"there is no file or folder {place}")
    return found


def read_lines(file: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
    lines = [line.strip() for line in text.split("\n")]
    return [line for line in lines if line]


def list_classes(folder: str, max_per_class: int | None) -> tuple[list[ClassFolder], list[str]]:
    """Return the classes that have pictures, sorted by name, and notes on what is left out."""
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"there is no folder {folder}")
    all_classes = [
        ClassFolder(shown(path.relative_to(root)), tuple(islice(pictures_below(path), max_per_class)))
        for path in sorted(root.iterdir())
        if path.is_dir() and not is_hidden(path.name)
    ]
    full = [found for found in all_classes if found.pictures]
    if len(full) < 2:
        raise SourceError(
            f"{folder} holds {counted(len(full), 'folder')} with pictures; a benchmark needs two or more, "
            "each named after its class"
        )
    return full, left_out(root, [found.name for found in all_classes if not found.pictures])


def left_out(root: Path, empty: Sequence[str]) -> list[str]:
    loose = sum(path.is_file() and has_image_suffix(path) and not is_hidden(path.name) for path in root.iterdir())
    notes = [f"folders without pictures are not classes: {', '.join(empty)}"] if empty else []
    return notes + ([f"left out, since outside of the class folders: {counted(loose, 'picture')}"] if loose else [])


def read_picture(path: Path, preprocess: Preprocess, pictures: PictureConfig) -> NDArray[np.uint8] | Failure:
    """Return the pixels of one picture for the model, or why there are none."""
    try:
        return read_pixels(read_file(path), preprocess, pictures)
    except ImageError as error:
        return Failure(shown(path), error.reason, str(error))
    except OSError as error:
        return Failure(shown(path), getattr(error, "reason", "read"), error.strerror or str(error))


def shown(path: Path) -> str:
    """Return a path as text that can be printed; bytes in its name that are not UTF-8 are escaped."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
