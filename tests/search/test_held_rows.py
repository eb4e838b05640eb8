"""Rows decoded from the codes of an index."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.held_rows import read_held, sample_held
from clip_retrieval.search.index import Index

NO_ROWS = np.empty(0, np.int64)
LEAST_COSINES = {
    "Flat": 0.9999,
    "SQfp16": 0.9999,
    "HNSW16,SQ8": 0.999,
    "IVF16,SQ8": 0.999,
    "IDMap,Flat": 0.9999,
    "IVF16,PQ8x4fs,Refine(SQfp16)": 0.9999,
    "OPQ4_16,IVF16,PQ4x4np": 0.4,
    "PCAR12,Flat": 0.7,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("key", LEAST_COSINES)
def test_rows_come_back_as_near_as_the_codes_are(key: str, unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows, ids = unit_rows(2000), np.array([1999, 0, 17, 1500, 17])
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    if key.startswith("IDMap"):
        index.add_with_ids(rows[::-1].copy(), np.arange(len(rows))[::-1].copy())
    else:
        index.add(rows)
    held = read_held(Index(index, NO_ROWS), ids)
    assert np.allclose(np.linalg.norm(held, axis=1), 1, atol=1e-5)
    assert ((held * rows[ids]).sum(axis=1)).min() > LEAST_COSINES[key]


@pytest.mark.parametrize("most", [10, 1_000_000])
def test_rows_are_the_same_looked_up_and_scanned_for(
    most: int, unit_rows: Callable[..., NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ids = unit_rows(500), np.array([7, 499, 3, 7])
    index = faiss.index_factory(rows.shape[1], "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add_with_ids(rows, np.arange(0, 2000, 4))  # ids with gaps
    opened = Index(index, NO_ROWS, row_count=2000)
    monkeypatch.setattr("clip_retrieval.search.row_places.MOST_PLACED", most)
    assert np.allclose(read_held(opened, 4 * ids), rows[ids], atol=1e-6)
    assert not read_held(opened, np.array([5])).any()
    assert (opened.parts[0].places.found is None) == (most == 10)


def test_rows_of_parts_are_found_in_theirs(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(50)
    parts = [faiss.IndexFlatIP(16), faiss.IndexFlatIP(16)]
    parts[0].add(rows[:20])
    parts[1].add(rows[20:])
    index = Index([OpenPart(parts[0]), OpenPart(parts[1], 20)], NO_ROWS)
    assert np.allclose(read_held(index, np.array([19, 20, 49])), rows[[19, 20, 49]], atol=1e-6)


@pytest.mark.parametrize("key", ["IVF4,Flat", "PCA12,IVF4,SQ8", "IDMap,Flat"])
def test_rows_of_parts_with_ids_are_found_in_theirs(key: str, unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows, asked = unit_rows(600), np.array([19, 20, 599, 301])
    whole = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    whole.train(rows)
    parts = [faiss.deserialize_index(faiss.serialize_index(whole)) for _ in range(3)]
    for part, ids in zip(parts, np.split(np.arange(600), [20, 301]), strict=True):
        part.add_with_ids(rows[ids], ids)
    index = Index([OpenPart(part) for part in parts], NO_ROWS)
    assert (read_held(index, asked) * rows[asked]).sum(axis=1).min() > 0.7


@pytest.mark.parametrize("key", ["Flat", "IVF4,Flat", "IDMap,Flat"])
@pytest.mark.parametrize("row", [-1, 50])
def test_a_row_that_is_not_there_is_named(row: int, key: str, unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(50)
    index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add_with_ids(rows, np.arange(50)) if key != "Flat" else index.add(rows)
    with pytest.raises(QueryError, match=f"no row {row}"):
        read_held(Index(index, NO_ROWS), np.array([3, row]))


@pytest.mark.parametrize("key", ["IVF4,Flat", "PCA12,IVF4,Flat"])
def test_a_row_without_an_embedding_is_zero(key: str, unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(50) + 1
    index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add_with_ids(rows[1:], np.arange(1, 50))
    held = read_held(Index(index, np.array([0]), row_count=50), np.array([1, 0]))
    assert held.any(axis=1).tolist() == [True, False]


@pytest.mark.parametrize("key", ["Flat", "IVF16,Flat", "IVF16,PQ8x4fs,Refine(SQfp16)", "OPQ8_16,IVF16,SQ8"])
def test_a_sample_is_of_rows_that_are_there_each_once(key: str, unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(1000)
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    sample = sample_held(Index(index, NO_ROWS), 300)
    nearest = sample @ rows.T
    assert len(set(nearest.argmax(axis=1).tolist())) == 300
    assert nearest.max(axis=1).min() > 0.99
    assert np.array_equal(sample, sample_held(Index(index, NO_ROWS), 300))
