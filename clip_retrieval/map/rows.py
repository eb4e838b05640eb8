"""The rows that a map lays out: from an index, or from an embeddings folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.errors import QueryError
from clip_retrieval.layout import EMBEDDING_FOLDERS, EmbeddingsFolder, IndexFolder, Modality
from clip_retrieval.map.config import MapConfig
from clip_retrieval.metadata import Metadata, open_metadata
from clip_retrieval.search.held_rows import read_held
from clip_retrieval.search.index import open_index
from clip_retrieval.storage import Folder

BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Embeddings and metadata by row."""

    url: str
    row_count: int
    dim: int
    read: Callable[[NDArray[np.int64]], NDArray[np.float32]]  # ids [n] to rows [n, d]
    metadata: Metadata | None

    def blocks(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the rows of ascending ids with the place of the first. Raises QueryError on NaN and infinity."""
        for start in range(0, len(ids), BLOCK_ROWS):
            some = ids[start : start + BLOCK_ROWS]
            rows = self.read(some)
            if not np.isfinite(rows).all():
                bad = int(some[~np.isfinite(rows).all(axis=1)][0])
                raise QueryError(f"row {bad} of {self.url} is not finite; embed it again")
            yield start, rows


def open_rows(config: MapConfig) -> Rows:
    """Open an index folder, else an embeddings folder. Raises QueryError if the folder is neither."""
    folder, modality = Folder(config.folder), config.modality
    if not folder.exists():
        raise QueryError(f"there is no folder {folder.url}")
    rows = open_index_rows(IndexFolder(config.folder), modality) or open_embedded_rows(
        EmbeddingsFolder(config.folder), modality
    )
    if rows is None:
        raise QueryError(
            f"{folder.url} holds neither an index nor embeddings of the modality {modality}; name a folder that index "
            "or inference wrote"
        )
    if rows.metadata is not None and rows.metadata.row_count != rows.row_count:
        raise QueryError(
            f"{folder.url} has {rows.row_count:,} rows of embeddings and {rows.metadata.row_count:,} rows of "
            "metadata; make it again"
        )
    return rows


def open_index_rows(folder: IndexFolder, modality: Modality) -> Rows | None:
    if not folder.exists(folder.index_name(modality)):
        return None
    index = open_index(folder, modality, memory_map=True)
    return Rows(
        url=folder.url,
        row_count=index.row_count,
        dim=index.dim,
        read=partial(read_held, index),
        metadata=open_metadata(folder),
    )


def open_embedded_rows(folder: EmbeddingsFolder, modality: Modality) -> Rows | None:
    vectors = open_vectors(folder, EMBEDDING_FOLDERS[modality])
    if vectors is None:
        return None
    return Rows(
        url=folder.url,
        row_count=vectors.row_count,
        dim=vectors.dim,
        read=partial(read_rows, vectors),
        metadata=open_metadata(folder),
    )


def choose_ids(row_count: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return ascending ids: all, or `count` of them, drawn evenly."""
    if row_count <= count:
        return np.arange(row_count, dtype=np.int64)
    drawn = np.random.default_rng(seed).choice(row_count, count, replace=False)
    return np.sort(drawn).astype(np.int64)
