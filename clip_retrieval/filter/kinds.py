"""What a word of the command line means: a text, or the picture or embedding in the file that it names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from clip_retrieval.encoder.picture_suffixes import IMAGE_SUFFIXES
from clip_retrieval.errors import QueryError
from clip_retrieval.media.places import SUFFIXES, split_place
from clip_retrieval.media.places import kind_of as media_kind_of
from clip_retrieval.query.terms import Words

if TYPE_CHECKING:
    from clip_retrieval.query.embed import QueryKind  # loads NumPy, which takes longer than finding the kind

URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
TAKEN = "a query is a text, or the path of a picture or an embedding (.npy)"
FILE_SUFFIXES = IMAGE_SUFFIXES.union({".npy"}, *SUFFIXES.values())
PLACES = {"document": "a page of it, {}#page=1", "video": "a frame of it by its seconds, {}#t=12.5"}


def kind_of(text: str) -> QueryKind:
    """Say what a query is: a url, an existing file, or a page or frame of one are opened; anything else is a text.

    Raises QueryError for likely mistakes: the name of a missing picture, the path of a folder or device.
    """
    if URL.fullmatch(text):
        return "image"
    path = Path(text)
    suffix = path.suffix.lower()
    try:
        is_file, exists, is_folder = path.is_file(), path.exists(), path.is_dir()
    except (OSError, ValueError):  # too long for a path, or below a folder that this user may not read
        return "text"
    if is_file:
        return "embedding" if suffix == ".npy" else "image"
    file = held_in(text)
    if file is not None and Path(file).is_file():
        return "image"
    is_path = "/" in text or os.sep in text or text in (".", "..")
    if exists and is_path:
        raise QueryError(f"{text} is {'a folder' if is_folder else 'not a regular file'}; {TAKEN}")
    if (is_path or " " not in text) and (suffix in FILE_SUFFIXES or split_place(text)):
        raise QueryError(f"there is no file {file or text}")
    return "text"


def held_in(text: str) -> str | None:
    """Return the PDF or video of a page or frame, even if the place is malformed (`film.mp4#t=1.50`); else None."""
    file = text.rpartition("#")[0]
    return file if file and media_kind_of(file) is not None else None


def describe_places(file: str) -> str:
    """Return how to name a picture in a PDF or video; empty for other files."""
    kind = media_kind_of(file)
    return "" if kind is None else f"; name {PLACES[kind].format(file)}"


def is_text(term: Words) -> bool:
    return term.row is None and (term.is_quoted or kind_of(term.text) == "text")
