"""The hits as a page in the cache, for `--open`."""

from __future__ import annotations

from dataclasses import replace

from clip_retrieval.filter.export import SHEET
from clip_retrieval.filter.run import export
from clip_retrieval.photos.ask import PhotoAnswer
from clip_retrieval.photos.folders import Kept
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder, check_writable


def with_sheet(answered: PhotoAnswer, kept: Kept) -> PhotoAnswer:
    """Write the page, with a thumbnail of each hit in it, and return the answer with its path."""
    target = Folder(kept.sheet())
    check_writable(target)
    with only_one(target, lambda: None):
        export(answered.answered, answered.table, target, copy_images=False)
    return replace(answered, sheet=target.path(SHEET))
