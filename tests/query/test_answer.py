"""Hits of many queries at once, and all hits above a threshold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.query import answer as query_answer
from clip_retrieval.query.answer import answer, answer_many
from clip_retrieval.query.config import SearcherConfig, SelectionConfig
from clip_retrieval.query.searcher import Searcher, open_searcher

ROWS = 300


@pytest.fixture(scope="module")
def rows(unit_rows: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
    return unit_rows(ROWS)


@pytest.fixture(scope="module")
def searcher(
    tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path], rows: NDArray[np.float32]
) -> Searcher:
    metadata = pd.DataFrame({"caption": [str(i) for i in range(ROWS)], "n": range(ROWS)})
    folder = write_index(tmp_path_factory.mktemp("answer") / "ix", metadata, rows=rows)
    return open_searcher(IndexFolder(str(folder)), SearcherConfig())


@pytest.mark.parametrize(
    "selection",
    [
        SelectionConfig(num_results=7),
        SelectionConfig(num_results=7, where="n < 100"),
        SelectionConfig(num_results=7, deduplicate=0.5),
        SelectionConfig(num_results=7, diverse=0.5),
        SelectionConfig(num_results=0, threshold=0.3),
    ],
    ids=["plain", "where", "deduplicate", "diverse", "all"],
)
def test_queries_asked_together_get_the_hits_that_they_get_alone(
    searcher: Searcher, selection: SelectionConfig
) -> None:
    queries = [searcher.like_row(row) for row in (3, 200, 7)]
    for query, found in zip(queries, answer_many(searcher, queries, selection), strict=True):
        alone = answer(searcher, query, selection)
        assert found.query is query
        assert len(found.found.ids) == len(alone.found.ids) > 0
        np.testing.assert_allclose(found.found.scores, alone.found.scores, atol=1e-5)
        assert query.own_rows[0] not in found.found.ids


def test_all_hits_above_a_threshold_are_found(
    searcher: Searcher, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_answer, "FIRST_ASKED", 4)
    for threshold in (-1.0, 0.0, 0.4, 0.99):
        found = answer(
            searcher, searcher.embed_vector(rows[5], "a row"), SelectionConfig(num_results=0, threshold=threshold)
        )
        scores = rows @ rows[5]
        sure = np.flatnonzero(scores > threshold + 1e-5)
        assert set(sure) <= set(found.found.ids.tolist()) <= set(np.flatnonzero(scores >= threshold - 1e-5))


def test_all_rows_that_meet_a_condition_are_found(searcher: Searcher) -> None:
    found = answer(searcher, searcher.like_row(0), SelectionConfig(num_results=0, where="n between 10 and 59"))
    assert sorted(found.found.ids.tolist()) == list(range(10, 60))


def test_all_hits_of_nothing_in_particular_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_results 0 means all hits: add --threshold"):
        SelectionConfig(num_results=0)


def test_near_duplicates_make_room_for_further_hits(searcher: Searcher, rows: NDArray[np.float32]) -> None:
    query = searcher.embed_vector(rows[5], "a row")
    found = answer(searcher, query, SelectionConfig(num_results=20, deduplicate=0.4)).found
    assert len(found.ids) == 20
    alike = rows[found.ids] @ rows[found.ids].T - np.eye(20)
    assert alike.max() < 0.4 + 1e-5
    plain = answer(searcher, query, SelectionConfig(num_results=20)).found
    assert (rows[plain.ids] @ rows[plain.ids].T - np.eye(20)).max() > 0.4


def test_all_hits_of_a_condition_can_be_without_near_duplicates(
    searcher: Searcher, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_answer, "MOST_COMPARED", 100)
    selection = SelectionConfig(num_results=0, where="n < 60", deduplicate=0.5)
    ids = answer(searcher, searcher.embed_vector(rows[5], "a row"), selection).found.ids
    assert 1 < len(ids) < 60
    rest = np.setdiff1d(np.arange(60), ids)
    assert (rows[rest] @ rows[ids].T).max(axis=1).min() >= 0.5 - 1e-5  # each one left out is near to one that is kept
    with pytest.raises(ConfigError, match="compare up to 100 hits, not 300; give a smaller num_results"):
        answer(searcher, searcher.like_row(1), SelectionConfig(num_results=0, threshold=0.1, diverse=0.5))


def test_chance_explains_all_but_what_is_meant(searcher: Searcher, rows: NDArray[np.float32]) -> None:
    found = answer(searcher, searcher.embed_vector(rows[5], "a row"), SelectionConfig(surprise=0.1))
    assert found.found.ids.tolist() == [5]
    assert found.expected is not None
    assert found.expected[0] < 0.1
    assert found.how == ("99 of the nearest rows were left out: chance explains their scores",)


def test_too_few_rows_to_tell_from_chance_are_all_kept(
    tmp_path: Path, write_index: Callable[..., Path], rows: NDArray[np.float32]
) -> None:
    folder = write_index(tmp_path / "ix", pd.DataFrame({"caption": list("abc")}), rows=rows[:3])
    few = open_searcher(IndexFolder(str(folder)), SearcherConfig())
    found = answer(few, few.embed_vector(rows[0], "a row"), SelectionConfig(surprise=0.1))
    assert len(found.found.ids) == 3
    assert "too few rows to distinguish" in found.how[0]


def test_no_queries_have_no_answers(searcher: Searcher) -> None:
    assert answer_many(searcher, [], SelectionConfig(where="n < 10")) == []
