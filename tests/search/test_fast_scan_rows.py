"""Rows of lists of 4-bit codes are what faiss decodes of an index in memory; one from a file would end the process."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.held_rows import decode, read_held, sample_held, sample_part
from clip_retrieval.search.index import open_index
from clip_retrieval.search.row_places import RowPlaces

KEYS = ["IVF4,PQ8x4fs", "IVF4,PQ8x4fsr", "IVF4,PQ4x4fs", "RR18,IVF4,PQ9x4fs", "PCAR12,IVF4,PQ3x4fs"]


def make_rows(count: int = 830) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 16), np.float32)


def make_index(path: Path, key: str) -> list[NDArray[np.float32]]:
    """Write an index; return the rows of each id as faiss decodes them in memory."""
    rows = make_rows()
    index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(path))
    lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    lists.make_direct_map()
    return list(index.reconstruct_batch(np.arange(len(rows))))


@pytest.mark.parametrize(("most", "at_once"), [(10, 4_096), (1_000_000, 4_096), (1_000_000, 100)])
@pytest.mark.parametrize("key", KEYS)
def test_rows_are_those_that_faiss_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, most: int, at_once: int
) -> None:
    monkeypatch.setattr("clip_retrieval.search.row_places.MOST_PLACED", most)
    monkeypatch.setattr("clip_retrieval.search.packed_codes.ROWS_AT_ONCE", at_once)
    wanted = np.stack(make_index(tmp_path / "image.index", key))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    opened = open_index(IndexFolder(str(tmp_path)), "image")
    ids = np.array([829, 0, 31, 32, 400, 31])
    np.testing.assert_allclose(read_held(opened, ids), wanted[ids], atol=1e-5)
    np.testing.assert_allclose(read_held(opened, np.arange(830)), wanted, atol=1e-5)
    drawn = sample_held(opened, 830)
    assert np.abs(drawn @ wanted.T).max(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(drawn @ wanted.T).max(axis=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.skipif(not hasattr(faiss, "IndexIVFRaBitQFastScan"), reason="this faiss has no such index")
def test_codes_of_other_kinds_are_refused() -> None:
    index = faiss.index_factory(16, "IVF4,RaBitQfs", faiss.METRIC_INNER_PRODUCT)
    index.train(make_rows())
    index.add(make_rows())
    with pytest.raises(QueryError, match="IndexIVFRaBitQFastScan, cannot give rows back"):
        decode(index, np.array([5]), RowPlaces())
    with pytest.raises(QueryError, match="cannot give rows back"):
        sample_part(index, np.array([5]))


def test_rows_of_a_refinement_are_its_own(tmp_path: Path) -> None:
    rows = make_rows()
    index = faiss.index_factory(16, "IVF4,PQ8x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "index"))
    opened = faiss.read_index(str(tmp_path / "index"))
    np.testing.assert_array_equal(decode(faiss.downcast_index(opened), np.array([5]), RowPlaces()), rows[5:6])
