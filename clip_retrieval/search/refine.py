"""Reranks hits by the stored embeddings, so small indices find what large ones do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.errors import QueryError
from clip_retrieval.layout import EMBEDDING_FOLDERS, EmbeddingsFolder, Modality
from clip_retrieval.search.index import Index
from clip_retrieval.search.results import SearchResult

CANDIDATES_PER_HIT = 10
MOST_MORE = 10_000  # most candidates beyond the wanted hits


def open_stored(folder: EmbeddingsFolder, modality: Modality, index: Index) -> Vectors:
    """Open the embeddings that an index was built from; raises QueryError if their shape does not match."""
    vectors = open_vectors(folder, EMBEDDING_FOLDERS[modality])
    if vectors is None:
        raise QueryError(f"{folder.url} holds no {modality} embeddings; name the folder that the index was built from")
    if (vectors.row_count, vectors.dim) != (index.row_count, index.dim):
        raise QueryError(
            f"{folder.url} has {vectors.row_count:,} x {vectors.dim} {modality} embeddings, the index has "
            f"{index.row_count:,} x {index.dim}; name the folder that it was built from, or update the index"
        )
    return vectors


def search_stored(
    find: Callable[[NDArray[np.float32], int], SearchResult], vectors: Vectors, query: NDArray[np.float32], k: int
) -> SearchResult:
    """Return the best k of several times as many candidates, with exact scores; only the candidates' rows are read."""
    found = find(query, min(CANDIDATES_PER_HIT * k, k + MOST_MORE))
    scores = read_rows(vectors, found.ids) @ query
    best = np.lexsort((found.ids, -scores))[:k]
    return SearchResult(found.ids[best], scores[best])
