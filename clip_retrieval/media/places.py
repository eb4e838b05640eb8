"""Pictures within files: pages of PDFs and frames of videos. How they are named, and references to them.

Loads no library: whether one is installed is asked without importing it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from clip_retrieval.installed import is_installed, pip_install

Kind = Literal["document", "video"]

MOST_PAGES = 100_000  # of a PDF: a damaged or hostile file may claim any number
MOST_LETTERS = 10_000  # of a text of a page or frame; models read the first hundreds
VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv".split()  # .ts is TypeScript, too
)
SUFFIXES: Mapping[Kind, frozenset[str]] = {"document": frozenset((".pdf",)), "video": VIDEO_SUFFIXES}
PLACE_PATH = re.compile(
    r"(?P<file>.*)#(?:page=(?P<page>[1-9]\d{0,8})|t=(?P<seconds>0|[1-9]\d{0,8})(?:\.(?P<rest>\d{1,3}))?)", re.DOTALL
)
PACKAGES = {
    "document": ("pypdfium2", "pdf", "pages of PDFs are read by a package"),
    "video": ("av", "video", "frames of videos are read by a package"),
}


class PlaceRef(NamedTuple):
    """A picture within a file. Size and stamp are those of the listing: a file that changes is another one.

    `place` is the number of a page, from 1, or the time of a frame or of what is said, in milliseconds; None for a file
    whose pictures could not be listed, which its reader explains.
    """

    url: str
    place: int | None
    size: int | None
    stamp: str


def can_read(kind: Kind) -> bool:
    return is_installed(PACKAGES[kind][0])


def advice(kind: Kind) -> str:
    package, extra, what = PACKAGES[kind]
    return f"{what}: {pip_install(package, extra)}"


def kind_of(path: str) -> Kind | None:
    """Return what kind of file holds many pictures; None for any other file."""
    suffix = path[path.rfind(".") :].lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def is_document(path: str) -> bool:
    return kind_of(path) == "document"


def is_video(path: str) -> bool:
    return kind_of(path) == "video"


def place_path(file: str, place: int) -> str:
    """Return a path that browsers open at the page, or at the time."""
    return f"{file}#page={place}" if is_document(file) else f"{file}#t={in_seconds(place)}"


def in_seconds(milliseconds: int) -> str:
    """Return a time in seconds, without zeros at its end."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds}.{rest:03d}".rstrip("0") if rest else str(seconds)


def split_place(path: str) -> tuple[str, int] | None:
    """Return file and place of a path that `place_path` made; None for any other path."""
    found = PLACE_PATH.fullmatch(path) if "#" in path else None
    if found is None or kind_of(found["file"]) != ("video" if found["page"] is None else "document"):
        return None
    place = int(found["page"] or 0) or int(found["seconds"]) * 1000 + int((found["rest"] or "").ljust(3, "0"))
    return (found["file"], place) if place_path(found["file"], place) == path else None


def in_place_order(path: str) -> tuple[str, int]:
    """Return the sort key of a path: page 10 comes after page 2."""
    return split_place(path) or (path, 0)
