"""Removes and adds rows of an existing faiss index.

Inverted lists know their rows by id, so rows can be taken out and put back. Arrays of codes (Flat, scalar and product
quantizers) know them by place, so rows can be overwritten. Graphs can only grow: removed rows are left out of
searches. A refinement holds every row in its second index, by place, and finds it by the ids of the first.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.index.building.block_lists import clear_tails

Rows = NDArray[np.float32]  # [n, d]
Ids = NDArray[np.int64]  # [n]
LISTS = (
    "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan", "IndexIVFRaBitQ",
)  # fmt: skip
ROUNDED = (faiss.ScalarQuantizer.QT_fp16, faiss.ScalarQuantizer.QT_bf16)  # formats that need no training


class CannotChangeError(Exception):
    """An index has to be built again; the message says why."""


def check_rows(index: Any, known: int) -> None:
    """Raise CannotChangeError unless this kind of index can be edited and holds `known` rows."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return check_rows(index.index, known)
    if isinstance(index, faiss.IndexRefine):
        check_rows(index.base_index, known)
        return check_rows(index.refine_index, known)
    if type(index).__name__ in LISTS:
        return check_lists(index)
    if not isinstance(index, faiss.IndexFlatCodes | faiss.IndexHNSW):
        raise CannotChangeError(f"faiss' {type(index).__name__} does not change")
    if index.ntotal != known:
        raise CannotChangeError(f"it holds {index.ntotal:,} rows, not {known:,}")
    return None


def check_lists(index: Any) -> None:
    lists = faiss.downcast_InvertedLists(index.invlists)
    if not isinstance(lists, faiss.ArrayInvertedLists | faiss.BlockInvertedLists):
        raise CannotChangeError("its lists are in another file")


def is_trained_on_rows(index: Any) -> bool:
    """Say whether the index was trained on its rows, so many new rows make it worse."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        return is_trained_on_rows(index.storage)
    if isinstance(index, faiss.IndexScalarQuantizer):
        return index.sq.qtype not in ROUNDED
    return not isinstance(index, faiss.IndexFlat)


def remove_rows(index: Any, ids: Ids) -> None:
    """Remove rows from lists and zero their codes; graphs keep them, so searches must exclude them."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        remove_rows(index.index, ids)
        index.ntotal = index.index.ntotal
    elif isinstance(index, faiss.IndexRefine):
        remove_rows(index.base_index, ids)
    elif isinstance(index, faiss.IndexIVF):
        remove_from_lists(index, ids)
    elif isinstance(index, faiss.IndexFlatCodes):
        overwrite(index, ids, np.zeros((len(ids), index.d), np.float32))


def put_rows(index: Any, ids: Ids, rows: Rows) -> None:
    """Fill the rows with these ids, which had no embedding before."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        put_rows(index.index, ids, transform(index, rows))
        index.ntotal = index.index.ntotal
    elif isinstance(index, faiss.IndexRefine):
        put_rows(index.base_index, ids, rows)
        put_rows(index.refine_index, ids, rows)
    elif isinstance(index, faiss.IndexIVF):
        remove_from_lists(index, ids)  # autofaiss adds zero rows to lists
        index.add_with_ids(rows, ids)
    else:
        overwrite(index, ids, rows)


def transform(index: Any, rows: Rows) -> Rows:
    for i in range(index.chain.size()):
        rows = faiss.downcast_VectorTransform(index.chain.at(i)).apply(rows)
    return rows


def overwrite(index: Any, ids: Ids, rows: Rows) -> None:
    codes = faiss.rev_swig_ptr(index.codes.data(), index.ntotal * index.code_size)
    codes.reshape(index.ntotal, index.code_size)[ids] = index.sa_encode(rows)


def remove_from_lists(index: Any, ids: Ids) -> None:
    """Remove rows from inverted lists; ids that are not in any list are ignored.

    Danger: faiss 1.13 miscounts rows removed from fast-scan lists, and leaves their codes behind.
    """
    index.set_direct_map_type(faiss.DirectMap.NoMap)
    index.remove_ids(faiss.IDSelectorBatch(ids))
    index.ntotal = index.invlists.compute_ntotal()
    lists = faiss.downcast_InvertedLists(index.invlists)
    if isinstance(lists, faiss.BlockInvertedLists):
        clear_tails(lists)
