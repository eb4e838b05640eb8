"""The nested nodes of a faiss index: transforms, lists, stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


def list_nodes(index: Any) -> Iterator[Any]:
    """Yield the nested indices of an index, from the outermost in; stores that only hold codes are left out."""
    node = faiss.downcast_index(index)
    yield node
    if isinstance(node, faiss.IndexRefine):
        yield from list_nodes(node.base_index)
    elif isinstance(node, faiss.IndexPreTransform | faiss.IndexIDMap):
        yield from list_nodes(node.index)


def has_graph(index: Any) -> bool:
    """Say whether rows are the nodes of a graph, which only grows."""
    return any(isinstance(node, faiss.IndexHNSW) for node in list_nodes(index))


def has_ids(index: Any) -> bool:
    """Say whether the index stores explicit ids; otherwise an id is a position."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return has_ids(index.index)
    return isinstance(index, faiss.IndexIVF | faiss.IndexIDMap)


def reconstruct(index: Any, ids: Sequence[int], rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the rows of an index, without giving it a map from ids to places, which would change it.

    Lists without such a map encode and decode the given rows again, to the same codes. Fast-scan lists and refined ones
    are excluded: faiss 1.13 crashes, or answers with noise.
    """
    try:
        stored: NDArray[np.float32] = np.stack([index.reconstruct(int(row)) for row in ids])
    except RuntimeError:
        last = list(list_nodes(index))[-1]
    else:
        return stored
    is_refined = any(isinstance(node, faiss.IndexRefine) for node in list_nodes(index))
    if is_refined or not isinstance(last, faiss.IndexIVF) or isinstance(last, faiss.IndexIVFFastScan):
        return None
    encoded: NDArray[np.float32] = index.sa_decode(index.sa_encode(rows))
    return encoded


def describe_tree(index: Any) -> str:
    """Return faiss's classes from the outside in, such as IndexRefine(IndexIVFPQFastScan, IndexScalarQuantizer)."""
    index = faiss.downcast_index(index)
    names = ("index", "base_index", "refine_index")
    inner = [describe_tree(getattr(index, name)) for name in names if hasattr(index, name)]
    return type(index).__name__ + (f"({', '.join(inner)})" if inner else "")


def keeps_lists_in_memory(index: Any) -> bool:
    """Say whether an index has lists that are read into memory although its file is mapped.

    faiss cannot map fast-scan lists, or map other lists together with the arrays of a refinement.
    """
    kinds = [type(node).__name__ for node in list_nodes(index)]
    has_lists = any(kind.startswith("IndexIVF") for kind in kinds)
    return has_lists and any(kind.endswith("FastScan") or kind == "IndexRefine" for kind in kinds)
