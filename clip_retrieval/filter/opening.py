"""The model of one query, which threads open while the main thread imports what searches, and opens the index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.filter.kinds import is_text
from clip_retrieval.layout import IndexFolder, read_manifest
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.terms import Words

if TYPE_CHECKING:
    from clip_retrieval.encoder.base import Encoder
    from clip_retrieval.encoder.config import EncoderConfig


class Opening:
    """A model that is on its way to encode texts; none where no text is asked for, or the index names no model."""

    def __init__(self, folder: str, config: SearcherConfig, words: Sequence[Words]) -> None:
        self.chosen: EncoderConfig | None = None
        self.opened: Encoder | Exception | None = None
        with suppress(ClipRetrievalError, OSError):  # told of by what reads these words and files next
            if any(is_text(term) for term in words):
                self.open(folder, config)

    def open(self, folder: str, config: SearcherConfig) -> None:
        from clip_retrieval.encoder.base import EncodesTexts
        from clip_retrieval.encoder.load import load_encoder
        from clip_retrieval.query.embed import choose_encoder

        manifest = read_manifest(IndexFolder(folder)) or {}
        self.chosen = choose_encoder(manifest.get("encoder"), config)
        try:
            self.opened = load_encoder(self.chosen, workload="once")
            if isinstance(self.opened, EncodesTexts):
                self.opened.start_text_side()
        except Exception as error:  # raised where the model is asked for  # noqa: BLE001
            self.opened = error

    def take(self, config: EncoderConfig) -> Encoder | None:
        """Return the model, or raise why it cannot be opened; None where it is not the model of `config`."""
        if self.chosen != config:
            return None
        opened, self.opened = self.opened, None  # who takes it may free it
        if isinstance(opened, Exception):
            raise opened
        return opened
