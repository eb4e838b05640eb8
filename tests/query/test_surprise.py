"""Scores compared with the background of an index: what stands out, and how often it does so wrongly."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.query.surprise import FEWEST_ROWS, read_background
from clip_retrieval.search.index import Index

NO_ROWS = np.empty(0, np.int64)
ROWS, DIM = 4000, 48
THRESHOLD = 0.1


def open_rows(rows: NDArray[np.float32], key: str = "Flat") -> Index:
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    return Index(index, NO_ROWS)


def near(row: NDArray[np.float32], cosine: float) -> NDArray[np.float32]:
    """Return a unit vector at this cosine to a row."""
    other = np.random.default_rng(5).standard_normal(len(row)).astype(np.float32)
    other -= (other @ row) * row
    return np.asarray(cosine * row + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other), np.float32)


@pytest.mark.parametrize("key", ["Flat", "IVF16,SQ8"])
def test_among_random_rows_as_many_seem_to_be_there_as_the_threshold_says(
    key: str, unit_rows: Callable[..., NDArray[np.float32]]
) -> None:
    rows, queries = unit_rows(ROWS, DIM), unit_rows(200, DIM, 1)
    background = read_background(open_rows(rows, key))
    best = (queries @ rows.T).max(axis=1)
    false = [
        background.expected_as_high(query, np.array([score]))[0] < THRESHOLD
        for query, score in zip(queries, best, strict=True)
    ]
    assert np.mean(false) < 0.1  # 20 of 200; one in ten is expected at most


def test_what_is_meant_stands_out(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(ROWS, DIM)
    background = read_background(open_rows(rows))
    query = near(rows[7], 0.9)
    assert background.expected_as_high(query, rows[7:8] @ query)[0] < 1e-3


def test_many_hits_do_not_hide_each_other(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(ROWS, DIM)
    rows[: ROWS // 4] = [near(rows[0], 0.9)] * (ROWS // 4)  # a quarter of the index is meant
    background = read_background(open_rows(rows))
    assert background.expected_as_high(rows[0], np.array([0.9]))[0] < THRESHOLD


def test_lower_scores_are_expected_more_often(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(ROWS, DIM)
    expected = read_background(open_rows(rows)).expected_as_high(rows[0], np.array([0.9, 0.5, 0.1, -1]))
    assert (np.diff(expected) > 0).all()
    assert expected[-1] == pytest.approx(ROWS)


def test_too_few_rows_tell_nothing(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(FEWEST_ROWS - 1, DIM)
    assert np.isnan(read_background(open_rows(rows)).expected_as_high(rows[0], np.array([1.0]))).all()
