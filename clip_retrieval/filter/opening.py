"""The model of one query and the index, which threads open while the main thread imports the rest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.filter.kinds import is_text
from clip_retrieval.layout import IndexFolder, read_manifest
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.terms import Words
from clip_retrieval.words import clean

if TYPE_CHECKING:
    from clip_retrieval.encoder.base import Encoder
    from clip_retrieval.encoder.config import EncoderConfig
    from clip_retrieval.search.index import Index


class Opening:
    """An index, and a model for the texts of a query, both being opened.

    There is no model if the query has no text, or if the index names none.
    """

    def __init__(self, folder: str, config: SearcherConfig, words: Sequence[Words]) -> None:
        self.chosen: EncoderConfig | None = None
        self.opened: Encoder | Exception | None = None
        with suppress(ClipRetrievalError, OSError):  # raised again by the code that reads these words and files next
            texts = [clean(term.text) for term in words if is_text(term)]
            if texts:
                self.open_model(folder, config, texts)
        self.index: tuple[dict[str, Any] | None, Index] | None = None  # with the manifest of its folder
        self.opening_index = self.start_index(IndexFolder(folder), config)

    def start_index(self, folder: IndexFolder, config: SearcherConfig) -> Thread:
        """Start to open the index: faiss leaves Python to others while it reads the lists, in 40 ms for 37 MB."""
        from clip_retrieval.search.index import open_index

        def run() -> None:
            with suppress(Exception):  # the user of the index opens it again, and gets the error
                manifest = read_manifest(folder)
                self.index = manifest, open_index(folder, config.modality, memory_map=config.memory_map)

        thread = Thread(target=run)
        thread.start()
        return thread

    def open_model(self, folder: str, config: SearcherConfig, texts: Sequence[str]) -> None:
        from clip_retrieval.encoder.base import EncodesTexts
        from clip_retrieval.encoder.load import load_encoder
        from clip_retrieval.query.embed import choose_encoder

        manifest = read_manifest(IndexFolder(folder)) or {}
        self.chosen = choose_encoder(manifest.get("encoder"), config)
        try:
            self.opened = load_encoder(self.chosen, workload="once")
            if isinstance(self.opened, EncodesTexts):
                self.opened.start_text_side(texts)
        except Exception as error:  # raised in `take_model`  # noqa: BLE001
            self.opened = error

    def take_index(self, manifest: dict[str, Any] | None) -> Index | None:
        """Return the index, once; None if it could not be opened, or was opened with another manifest."""
        self.opening_index.join()
        opened, self.index = self.index, None
        return opened[1] if opened is not None and opened[0] == manifest else None

    def take_model(self, config: EncoderConfig) -> Encoder | None:
        """Return the model, or raise its error; None if it is not the model of `config`."""
        if self.chosen != config:
            return None
        opened, self.opened = self.opened, None  # the caller may free it
        if isinstance(opened, Exception):
            raise opened
        return opened
