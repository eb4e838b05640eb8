"""Lists of fast scan alone give no rows back: asking faiss for them would end the process."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from clip_retrieval.errors import QueryError
from clip_retrieval.search.held_rows import decode, sample_part
from clip_retrieval.search.row_places import RowPlaces


@pytest.mark.parametrize("key", ["IVF4,PQ8x4fs", "OPQ8_16,IVF4,PQ8x4fs"])
def test_rows_of_fast_scan_are_refused(tmp_path: Path, key: str) -> None:
    rows = np.random.default_rng(0).standard_normal((800, 16), np.float32)
    index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "index"))
    opened = faiss.read_index(str(tmp_path / "index"))
    inner = faiss.downcast_index(opened)
    with pytest.raises(QueryError, match="gives no rows back"):
        decode(inner, np.array([5]), RowPlaces())
    with pytest.raises(QueryError, match="gives no rows back"):
        sample_part(inner, np.array([5]))


def test_rows_of_a_refinement_are_its_own(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((800, 16), np.float32)
    index = faiss.index_factory(16, "IVF4,PQ8x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "index"))
    opened = faiss.read_index(str(tmp_path / "index"))
    np.testing.assert_array_equal(decode(faiss.downcast_index(opened), np.array([5]), RowPlaces()), rows[5:6])
