"""Which files are pictures by their name; listing them loads no decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clip_retrieval.errors import SourceError
from clip_retrieval.words import is_hidden

# The suffixes that Pillow and pillow-heif register for the formats that encoder/images.py opens; a test compares them.
# Written out because loading Pillow for its list would add 50 ms to every `--help`.
IMAGE_SUFFIXES = frozenset(
    (
        ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .pfm "
        ".jp2 .j2k .jpc .jpf .jpx .j2c .ico .tga .icb .vda .vst .avif .avifs .heic .heics .heif .heifs .hif"
    ).split()
)


def has_image_suffix(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def pictures_below(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of all folders below it, sorted by path.

    Hidden files and folders (their names start with a dot) are left out, and links to folders are not followed, as in
    `inference`. Raises SourceError if a folder cannot be listed.
    """
    return sorted(path for path in visible_files(folder) if has_image_suffix(path) and path.is_file())


def visible_files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(place, name) for name in files if not is_hidden(name))
