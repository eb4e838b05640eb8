"""An index file opened for search: ids and scores, without padding and without rows that have no embedding."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.layout import IndexFolder, Modality
from clip_retrieval.storage import Folder


@dataclass(frozen=True)
class SearchResult:
    """Hits in order of decreasing score."""

    ids: NDArray[np.int64]  # [k]
    scores: NDArray[np.float32]  # [k], inner products


class Index:
    """One opened faiss index; searches share no state, so that they may run at once."""

    def __init__(self, index: Any, empty_rows: NDArray[np.int64]) -> None:
        self.index = index
        self.dim = int(index.d)
        self.row_count = int(index.ntotal)
        self.empty_rows = empty_rows
        self.parameters = skip_rows(index, empty_rows) if len(empty_rows) else None

    def search(self, query: NDArray[np.float32], k: int) -> SearchResult:
        """Return up to k hits for one query [dim]; fewer where the index has or finds fewer."""
        if query.shape != (self.dim,):
            raise QueryError(
                f"the query has {query.shape[-1]} dimensions, the index has {self.dim}: they are of different models"
            )
        k = min(k, self.row_count - len(self.empty_rows))
        if k < 1:
            return SearchResult(np.empty(0, np.int64), np.empty(0, np.float32))
        rows = np.ascontiguousarray(query[None], dtype=np.float32)
        scores, ids = (
            self.index.search(rows, k, params=self.parameters) if self.parameters else self.index.search(rows, k)
        )
        return drop_missing(ids[0], scores[0])


def drop_missing(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> SearchResult:
    """Faiss pads short results with id -1; those are not rows."""
    found = ids >= 0
    return SearchResult(ids[found], scores[found])


def skip_rows(index: Any, rows: NDArray[np.int64]) -> Any:
    """Return search parameters that leave out some rows and else do what the index does by itself.

    faiss takes the parameters as a whole: what the index was tuned to must be repeated in them.
    """
    index = faiss.downcast_index(index)
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(rows))
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=skip_rows(index.index, rows))
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    if isinstance(index, faiss.IndexIVFPQ):
        return faiss.IVFPQSearchParameters(sel=selector, nprobe=index.nprobe)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
    return faiss.SearchParameters(sel=selector)


def open_index(folder: IndexFolder, modality: Modality) -> Index:
    """Open one index; raises QueryError where the folder has none of that modality."""
    name = folder.index_name(modality)
    if not folder.exists(name):
        raise QueryError(f"{folder.url} has no {name}{other_index(folder)}")
    try:
        opened = faiss.read_index(folder.path(name)) if folder.is_local else read_remote(folder, name)
    except RuntimeError as error:
        raise StorageError(f"{folder.path(name)} is no readable faiss index; build it again") from error
    return Index(opened, read_empty_rows(folder, modality))


def read_remote(folder: Folder, name: str) -> Any:
    return faiss.deserialize_index(np.frombuffer(folder.read_bytes(name), dtype=np.uint8))


def other_index(folder: IndexFolder) -> str:
    names = folder.names("", ".index")
    if not names:
        return "; `clip-retrieval index` makes one"
    return f"; it has {' and '.join(names)} (choose with --modality)"


def read_empty_rows(folder: IndexFolder, modality: Modality) -> NDArray[np.int64]:
    name = folder.empty_rows_name(modality)
    if not folder.exists(name):
        return np.empty(0, dtype=np.int64)
    rows: NDArray[np.int64] = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    return rows
