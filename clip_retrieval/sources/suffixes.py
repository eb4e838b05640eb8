"""Which file names are pictures, captions and json."""

from __future__ import annotations

from clip_retrieval.encoder.picture_suffixes import IMAGE_SUFFIXES as IMAGE_SUFFIXES

TEXT_SUFFIX = ".txt"
METADATA_SUFFIX = ".json"
SUBTITLE_SUFFIXES = (".srt", ".vtt")  # of videos, the one that counts first


def split_key(name: str) -> tuple[str, str]:
    """Return the key and the lower-case suffix of a member name: the path up to the last dot, and from it.

    webdataset cuts at the first dot of the base name. That tears `a.v1.jpg` and `a.v2.jpg` out of shape, so here
    only the last suffix counts.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    if not dot or not stem:
        return name, ""
    return f"{folder}{slash}{stem}", f".{suffix.lower()}"
