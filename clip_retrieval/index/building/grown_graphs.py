"""Gives a graph room for new rows: otherwise its arrays are copied when they grow, and held twice."""

from __future__ import annotations

from typing import Any

import faiss

from clip_retrieval.search.tree import list_nodes

LEVELS = 1.25  # times the links of a row at the lowest level: a few rows have links at upper levels
LUCK = 4096  # additional links, since a single row may be at many levels


def make_room(index: Any, rows: int) -> None:
    """Let an index in memory hold `rows` more rows without being copied, if it is a graph."""
    for graph in list_nodes(index):
        if isinstance(graph, faiss.IndexHNSW) and has_rows_of_its_own(graph):
            storage = faiss.downcast_index(graph.storage)
            reserve(storage.codes, rows * storage.code_size)
            reserve(graph.hnsw.neighbors, count_links(graph, rows))


def open_with_room(path: str, rows: int) -> Any:
    """Return the index of a file in memory, with room for `rows` more rows if it is a graph.

    Raises RuntimeError if the file is not a faiss index.
    """
    index, mapped = (faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC) for _ in range(2))
    graph = faiss.downcast_index(index)
    if not isinstance(graph, faiss.IndexHNSW) or not is_mapped(graph):
        return faiss.read_index(path)
    storage = faiss.downcast_index(graph.storage)
    storage.codes = faiss.IndexFlatIP(1).codes  # its own, and empty
    take(faiss.downcast_index(mapped.storage).codes, storage.codes, rows * storage.code_size)
    graph.hnsw.neighbors = faiss.HNSW().neighbors
    take(mapped.hnsw.neighbors, graph.hnsw.neighbors, count_links(graph, rows))
    return index


def has_rows_of_its_own(graph: Any) -> bool:
    return isinstance(faiss.downcast_index(graph.storage), faiss.IndexFlatCodes) and not is_mapped(graph)


def is_mapped(graph: Any) -> bool:
    """Say whether rows and links are in a file."""
    storage = faiss.downcast_index(graph.storage)
    return isinstance(storage, faiss.IndexFlatCodes) and not (storage.codes.is_owned or graph.hnsw.neighbors.is_owned)


def count_links(graph: Any, rows: int) -> int:
    return int(rows * graph.hnsw.nb_neighbors(0) * LEVELS) + LUCK


def reserve(array: Any, more: int) -> None:
    count = int(array.size())
    array.resize(count + more)
    array.resize(count)  # which keeps the memory


def take(mapped: Any, array: Any, more: int) -> None:
    """Copy a mapping into an empty array that has room for more."""
    count = int(mapped.size())
    array.resize(count + more)
    faiss.rev_swig_ptr(array.data(), count)[:] = faiss.rev_swig_ptr(mapped.data(), count)
    array.resize(count)
