"""What is seen of a folder before anything heavy is loaded: its listing, what is kept of it, and whether they agree."""

from __future__ import annotations

import msgspec

from clip_retrieval.filter.opening import Opening
from clip_retrieval.photos.config import SearchConfig
from clip_retrieval.photos.folders import About, Kept, check_is_folder, find_kept
from clip_retrieval.photos.listing import Look, look_at
from clip_retrieval.query.config import SearcherConfig


class Seen(msgspec.Struct, frozen=True):
    """A folder as it is now, and what is known of it; None where it was never embedded."""

    kept: Kept
    look: Look
    about: About | None
    is_current: bool  # the index holds what the folder holds

    def start_opening(self, config: SearchConfig) -> Opening | None:
        """Have the model of a single query opened meanwhile; None where the folder has to be embedded before that."""
        if self.about is None or not self.is_current or config.output.interactive:
            return None
        return Opening(self.kept.index(self.about.clip_model), SearcherConfig(), config.asked.words)


def see(config: SearchConfig) -> Seen:
    """Look at a folder. Raises SourceError where there is none, and StorageError where what is kept is unreadable."""
    check_is_folder(config.folder)
    kept = find_kept(config.folder)
    look, about = look_at(kept.folder), kept.about()
    is_same = about is not None and about.seen == look.digest
    return Seen(kept, look, about, is_same and not config.reembed and config.clip_model is None)
