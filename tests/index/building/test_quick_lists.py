"""Lists that are found the quick way are those that comparing with every centroid finds."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.zero_rows import find_filled
from clip_retrieval.index.building.quick_lists import make_quick, quick_lists

pytestmark = pytest.mark.usefixtures("one_thread")

Rows = Callable[..., NDArray[np.float32]]
DIM, LISTS = 128, 256


def make_rows(count: int, spread: int, seed: int = 0) -> NDArray[np.float32]:
    """Return unit vectors that lie mostly along `spread` directions, beside an offset that all have in common."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, DIM)) * np.where(np.arange(DIM) < spread, 1, 0.05) + 1
    rows @= np.linalg.qr(np.random.default_rng(99).standard_normal((DIM, DIM)))[0]
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def make_lists(key: str, spread: int = 16) -> faiss.Index:
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1
    index.train(make_rows(4000, spread))
    return index


@pytest.mark.parametrize("key", ["IVF256,SQ8", "RR128,IVF256,PQ32x4fs"])
def test_an_index_is_what_it_is_without(key: str) -> None:
    empty, rows = make_lists(key), make_rows(3000, 16, seed=1)
    plain, quick = faiss.clone_index(empty), faiss.clone_index(empty)
    whole = faiss.extract_index_ivf(quick).quantizer
    plain.add(rows)
    with quick_lists(quick):
        used = faiss.extract_index_ivf(quick).quantizer
        quick.add(rows)

    assert isinstance(faiss.downcast_index(used), faiss.IndexRefine)
    assert faiss.extract_index_ivf(quick).quantizer.this == whole.this
    assert faiss.serialize_index(quick).tobytes() == faiss.serialize_index(plain).tobytes()


def test_a_list_that_is_missed_is_nearly_as_near() -> None:
    index = make_lists("IVF256,Flat", spread=48)
    lists, rows = faiss.extract_index_ivf(index), make_rows(3000, 48, seed=1)
    quick = make_quick(faiss.downcast_index(lists.quantizer))
    assert quick is not None
    best, found = (quantizer.search(rows, 1) for quantizer in (lists.quantizer, quick))

    assert (best[1] == found[1]).mean() > 0.99
    assert np.abs(best[0] - found[0]).max() < 0.01


@pytest.mark.parametrize(("key", "spread"), [("IVF256,Flat", DIM), ("IVF16,Flat", 16), ("IVF256_HNSW8,Flat", 16)])
def test_what_would_gain_nothing_stays_as_it_is(key: str, spread: int) -> None:
    index = make_lists(key, spread)
    whole = faiss.extract_index_ivf(index).quantizer
    with quick_lists(index):
        assert faiss.extract_index_ivf(index).quantizer.this == whole.this


def test_rows_that_are_many_times_the_same_are_where_searches_look() -> None:
    rows = make_rows(50, 16)[np.arange(4000) % 50]
    index = faiss.index_factory(DIM, "IVF256,Flat", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1
    index.train(rows)
    with quick_lists(index):
        index.add(rows)
    scores, _ = index.search(rows[:50], 1)
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def test_what_has_no_lists_stays_as_it_is(unit_rows: Rows) -> None:
    index = faiss.IndexFlatIP(16)
    with quick_lists(index):
        index.add(unit_rows(10))
    assert index.ntotal == 10


def test_lists_are_whole_again_after_an_error() -> None:
    index = make_lists("IVF256,SQ8")
    whole = faiss.extract_index_ivf(index).quantizer
    with pytest.raises(KeyboardInterrupt), quick_lists(index):
        raise KeyboardInterrupt
    assert faiss.extract_index_ivf(index).quantizer.this == whole.this


def test_rows_are_zero_only_where_every_number_is() -> None:
    rows = np.zeros((6, 9), np.float32)
    rows[1, 0], rows[2, 8], rows[4, 5], rows[5, 3] = 1, 1e-30, -1, np.nan
    assert find_filled(rows).tolist() == [1, 2, 4, 5]
    assert find_filled(rows[:1]).tolist() == []
    assert find_filled(rows[:, :2]).tolist() == [1]
