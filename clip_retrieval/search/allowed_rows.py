"""Rows that a search of one faiss index is restricted to, or leaves out: faiss's selectors."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.results import SearchResult, clean_all
from clip_retrieval.search.settings import Settings, search_parameters, takes_selector

NO_ROWS = np.empty(0, np.int64)


def search_part_allowed(
    part: OpenPart, queries: NDArray[np.float32], k: int, settings: Settings, allowed: NDArray[np.bool_]
) -> list[SearchResult]:
    """Search one faiss index among some rows; if it cannot leave rows out, ask for more until enough are left."""
    mask = allowed[part.first_row :]
    selector = make_bitmap(mask) if takes_selector(part.index) else None
    asked = min(k, part.index.ntotal)
    while asked > 0:
        scores, ids = part.index.search(queries, asked, params=search_parameters(part.index, settings, selector))
        found = clean_all(ids, scores, NO_ROWS, part)
        if selector is not None:
            return found
        found = [SearchResult(hits.ids[(kept := allowed[hits.ids])][:k], hits.scores[kept][:k]) for hits in found]
        if asked >= part.index.ntotal or min(len(hits.ids) for hits in found) >= k:
            return found
        asked = min(4 * asked, part.index.ntotal)
    return [SearchResult(NO_ROWS, np.empty(0, np.float32)) for _ in queries]


def make_bitmap(mask: NDArray[np.bool_]) -> Any:
    """Return faiss's selector of the rows that are True in `allowed`; it keeps its bitmap alive."""
    bits = np.packbits(mask, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    selector.bits = bits
    return selector


def make_selector(part: OpenPart, empty_rows: NDArray[np.int64]) -> Any:
    """Return a selector that excludes zero rows; None if there are none, or if faiss cannot select in this index."""
    rows = empty_rows[empty_rows >= part.first_row] - part.first_row
    return faiss.IDSelectorNot(faiss.IDSelectorBatch(rows)) if len(rows) and takes_selector(part.index) else None
