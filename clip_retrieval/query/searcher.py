"""An index folder, opened once and searched often: encoder, index, stored embeddings and metadata together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.checksums import fingerprint_index
from clip_retrieval.encoder.base import Encoder, Workload
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.layout import EmbeddingsFolder, IndexFolder, about_index, read_manifest
from clip_retrieval.metadata import Metadata, open_metadata
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.embed import (
    Query,
    check_dimension,
    check_model,
    choose_encoder,
    choose_pictures,
    embed_text,
    embed_texts,
    embed_vector,
    read_query_picture,
)
from clip_retrieval.query.hits import join_metadata
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.search.results import SearchResult
from clip_retrieval.search.settings import Settings, parse_settings

if TYPE_CHECKING:  # imported below at their use, since together they take 10 ms of every start
    from clip_retrieval.embeddings.vectors import Vectors
    from clip_retrieval.query.surprise import Background
    from clip_retrieval.search.within import Within

OPENING_TRIES = 10


class Opened(Protocol):
    """What was opened in advance; each is taken once, and None if another one is needed."""

    def take_model(self, config: EncoderConfig) -> Encoder | None: ...

    def take_index(self, manifest: dict[str, Any] | None) -> Index | None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Searcher:
    """An opened index folder; every method may be called from many threads at once.

    The model is loaded for the first text or picture; a vector needs none. Searching and joining share no mutable
    state. Encoders do (counters, buffers of the runtime), so only one thread at a time encodes.
    """

    name: str  # the folder's name, for messages
    fingerprint: str  # identifies the index, whatever the name of its folder
    config: SearcherConfig
    expected: dict[str, Any] | None  # the encoder in the index's manifest
    index: Index
    metadata: Metadata | None
    stored: Vectors | None  # the embeddings for reranking candidates
    settings: Settings | None
    workload: Workload
    ahead: Opened | None = None
    encoding: Lock = field(default_factory=Lock)
    drawing: Lock = field(default_factory=Lock)
    drawn: list[Background] = field(default_factory=list)  # none or one; changed only under the lock
    loaded: list[Encoder] = field(default_factory=list)  # none or one; changed only under the lock

    def embed_text(self, text: str) -> Query:
        """Embed a text, which is never read as a path. Raises QueryError and EncoderError."""
        with self.encoding:
            return embed_text(self.load(), text)

    def embed_texts(self, texts: Sequence[str]) -> list[Query | QueryError]:
        """Embed texts in one batch; a text that cannot be embedded is replaced by its error. Raises EncoderError."""
        with self.encoding:
            return embed_texts(self.load(), texts)

    def embed_picture(self, data: bytes, name: str) -> Query:
        """Embed the bytes of a picture; `name` is its name for users. Raises QueryError and EncoderError."""
        return self.embed_pixels(self.read_picture(data, name)[None], [name])[0]

    def read_picture(self, data: bytes, name: str, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """Return a picture's pixels [size, size, 3] for the model. Raises QueryError and EncoderError."""
        with self.encoding:
            encoder = self.load()
        pictures = choose_pictures(self.expected)
        if max_pixels is not None:
            pictures = replace(pictures, max_pixels=min(max_pixels, pictures.max_pixels))
        return read_query_picture(encoder, data, name, pictures)

    def embed_pixels(self, pixels: NDArray[np.uint8], names: Sequence[str]) -> list[Query]:
        """Embed the pixels [n, size, size, 3] of `read_picture` in one batch. Raises EncoderError."""
        with self.encoding:
            embeddings = self.load().encode_images(pixels)
        return [Query(name, "image", embedding) for name, embedding in zip(names, embeddings, strict=True)]

    def embed_vector(self, values: NDArray[Any], name: str) -> Query:
        """Return the query of a vector [d] or [1, d]; no model is loaded. Raises QueryError."""
        return embed_vector(values, name)

    def like_row(self, row: int) -> Query:
        """Return the query of a row of the index: more like this. Raises QueryError if there is no such row."""
        if not 0 <= row < self.index.row_count:
            raise QueryError(f"the index has no row {row}; its ids are 0 to {self.index.row_count - 1:,}")
        embedding = self.rows(np.array([row]))[0]
        if not embedding.any():
            raise QueryError(f"row {row} has no embedding: it had no usable {self.config.modality}")
        return Query(f"row {row}", "row", embedding, own_rows=(row,))

    def check_dimension(self, query: Query) -> None:
        """Raise QueryError if the query's dimension differs from that of the index."""
        check_dimension(query, self.index.dim)

    def load(self) -> Encoder:
        """Return the model, loaded and compared with that of the index once; the caller holds the lock."""
        if not self.loaded:
            config = choose_encoder(self.expected, self.config)
            opened = None if self.ahead is None else self.ahead.take_model(config)
            encoder = load_encoder(config, workload=self.workload) if opened is None else opened
            check_model(encoder, self.expected)
            self.loaded.append(encoder)
        return self.loaded[0]

    def free_model(self) -> None:
        """Free the model, in 7 ms: the 40 MB of a small one are not held during the search."""
        with self.encoding:
            self.loaded.clear()

    def search(self, query: Query, k: int, threshold: float | None = None, *, every_row: bool = False) -> SearchResult:
        """Return up to k hits, only those as similar as `threshold`. Raises QueryError for another dimension.

        With `every_row`, all rows of a graph are compared; nothing else is sure to find all that are as similar.
        """
        if self.stored is None:
            found = self.index.search(query.embedding, k, self.settings, every_row=every_row)
        else:
            from clip_retrieval.search.refine import search_stored

            found = search_stored(
                partial(self.index.search, settings=self.settings, every_row=every_row), self.stored, query.embedding, k
            )
        if threshold is None:
            return found
        close = found.scores >= threshold
        return SearchResult(found.ids[close], found.scores[close])

    def search_many(self, queries: Sequence[Query], k: int, *, every_row: bool = False) -> list[SearchResult]:
        """Return what `search` returns for each query, searched at once. Raises QueryError for another dimension."""
        if self.stored is not None or len(queries) < 2:
            return [self.search(query, k, every_row=every_row) for query in queries]
        embeddings = np.stack([query.embedding for query in queries])
        return self.index.search_many(embeddings, k, self.settings, every_row=every_row)

    def rows_where(self, condition: str) -> NDArray[np.int64]:
        """Return the ids of the rows that meet a condition over the metadata. Raises QueryError."""
        if self.metadata is None:
            raise QueryError(f"--where needs metadata, and {self.name} has none")
        from clip_retrieval.query.predicates import rows_where

        return rows_where(self.metadata, condition)

    def within(self, rows: NDArray[np.int64], *, every_row: bool = False) -> Within:
        """Return some rows to restrict a search to, with the stored embeddings if they are open."""
        from clip_retrieval.search.within import Within

        return Within(rows, self.stored, every_row)

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows [n, d] by id: the stored embeddings, else those of the index."""
        if self.stored is None:
            from clip_retrieval.search.held_rows import read_held

            return read_held(self.index, ids)
        from clip_retrieval.embeddings.rows import read_rows

        return read_rows(self.stored, ids)

    def background(self) -> Background:
        """Return the background that scores are compared with; it is drawn once."""
        from clip_retrieval.query.surprise import read_background

        with self.drawing:
            if not self.drawn:
                self.drawn.append(read_background(self.index))
            return self.drawn[0]

    def join(self, found: SearchResult) -> pa.Table:
        """Return rank, id and similarity of the hits, and their metadata."""
        return join_metadata(self.metadata, found)


def open_searcher(
    folder: IndexFolder,
    config: SearcherConfig,
    *,
    workload: Workload = "query",
    ahead: Opened | None = None,
) -> Searcher:
    """Open an index folder; raises QueryError and StorageError if it cannot answer.

    A build may replace the folder's files meanwhile; all that is opened belongs to one build.
    """
    if not folder.exists():
        raise QueryError(f"there is no index folder {folder.url}")
    for _ in range(OPENING_TRIES):
        manifest = read_manifest(folder)
        taken = None if ahead is None else ahead.take_index(manifest)
        index = taken or open_index(folder, config.modality, memory_map=config.memory_map)
        metadata = open_metadata(folder)
        if read_manifest(folder) == manifest:
            break
    else:
        raise StorageError(f"{folder.url} keeps changing; try again when its build has finished")
    if metadata is not None and metadata.row_count != index.row_count:
        raise QueryError(
            f"{folder.url} has an index of {index.row_count:,} rows and {metadata.row_count:,} rows of metadata",
            advice="build it again",
        )
    return Searcher(
        name=folder.url,
        fingerprint=fingerprint_index(folder, config.modality, about_index(manifest, config.modality)),
        config=config,
        expected=manifest.get("encoder") if manifest else None,
        index=index,
        metadata=metadata,
        stored=open_stored(config, index),
        settings=None if config.index_param is None else index.checked(parse_settings(config.index_param)),
        workload=workload,
        ahead=ahead,
    )


def open_stored(config: SearcherConfig, index: Index) -> Vectors | None:
    """Open the embeddings for reranking candidates; None if none are named. Raises QueryError."""
    if not config.refine_from:
        return None
    from clip_retrieval.search.refine import open_stored

    return open_stored(EmbeddingsFolder(config.refine_from), config.modality, index)
