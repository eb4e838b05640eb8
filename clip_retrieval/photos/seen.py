"""A folder before anything heavy is loaded: its listing, what is kept for it, and whether they agree."""

from __future__ import annotations

import msgspec

from clip_retrieval.filter.opening import Opening
from clip_retrieval.photos.config import SearchConfig
from clip_retrieval.photos.folders import About, Kept, check_is_folder, find_kept
from clip_retrieval.photos.listing import Look, look_at
from clip_retrieval.query.config import SearcherConfig


class Seen(msgspec.Struct, frozen=True):
    """The current state of a folder, and what is known of it; None if it was never embedded."""

    kept: Kept
    look: Look
    about: About | None
    is_current: bool  # the index matches the folder

    def start_opening(self, config: SearchConfig) -> Opening | None:
        """Start to open the model of a single query; None if the folder has to be embedded first."""
        if self.about is None or not self.is_current or config.output.interactive:
            return None
        return Opening(self.kept.index(self.about.clip_model), SearcherConfig(), config.asked.words)


def see(config: SearchConfig) -> Seen:
    """Look at a folder. Raises SourceError if it does not exist, and StorageError if the kept files are unreadable."""
    check_is_folder(config.folder)
    kept = find_kept(config.folder)
    look, about = look_at(kept.folder), kept.about()
    is_same = about is not None and about.seen == look.digest
    return Seen(kept, look, about, is_same and not config.reembed and config.clip_model is None)
