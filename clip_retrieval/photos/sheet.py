"""The hits as a page in the cache, for `--open`."""

from __future__ import annotations

import msgspec

from clip_retrieval.filter.export import write_hits
from clip_retrieval.filter.hits import Asked, collect_hits
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.photos.ask import PhotoAnswer, PhotoFolder
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder, check_writable


def with_sheet(answered: PhotoAnswer, photos: PhotoFolder) -> PhotoAnswer:
    """Write the page, with a thumbnail of each hit in it, and return the answer with its path."""
    target = Folder(photos.kept.sheet())
    check_writable(target)
    with only_one(target, lambda: None):
        asked = Asked(1, answered.answered.query.text, answered.answered)
        write_hits(target, collect_hits(photos.searcher, [asked], is_batch=False), ("html",), "none")
    return msgspec.structs.replace(answered, sheet=target.path(SHEET))
