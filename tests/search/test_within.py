"""Searches among some of the rows, held against brute force: Flat, graphs, lists, refined and partitioned indices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.search import index as search_index
from clip_retrieval.search import within
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.index import Index
from clip_retrieval.search.settings import Settings
from clip_retrieval.search.within import Within, search_within

ROWS, DIM, K = 4000, 16, 10
SHARES = (0, 0.0025, 0.01, 0.1, 0.5, 1)
KINDS = {
    "Flat": Settings(),
    "SQfp16": Settings(),
    "HNSW16,Flat": Settings({"efSearch": 64}),
    "IVF64,Flat": Settings({"nprobe": 8}),
    "IVF64,PQ8x4fs,Refine(SQfp16)": Settings({"nprobe": 8, "k_factor_rf": 8}),
    "IVF64_HNSW16,SQ8": Settings({"nprobe": 8}),
    "PQ16x4fs": Settings(),  # leaves no rows out by itself
}
NO_ROWS = np.empty(0, np.int64)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(unit_rows: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
    return unit_rows(ROWS, DIM)


@pytest.fixture(scope="module")
def queries(unit_rows: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
    return unit_rows(8, DIM, 1)


def build(key: str, rows: NDArray[np.float32], settings: Settings) -> Index:
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    return Index(index, NO_ROWS, settings)


def choose(share: float) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(3).choice(ROWS, int(share * ROWS), replace=False))


def recall(index: Index, rows: NDArray[np.float32], queries: NDArray[np.float32], kept: NDArray[np.int64]) -> float:
    """Search, check what always holds, and return the share of the exact neighbors that were found."""
    found = search_within(index, queries, K, Within(kept))
    truth = kept[np.argsort(-(queries @ rows[kept].T), axis=1)[:, :K]]
    for hits in found.hits:
        assert len(hits.ids) == len(set(hits.ids.tolist())) == min(K, len(kept))
        assert np.isin(hits.ids, kept).all()
        assert (np.diff(hits.scores) <= 0).all()
    shares = [np.isin(best, hits.ids).mean() for hits, best in zip(found.hits, truth, strict=True) if len(best)]
    return float(np.mean(shares)) if shares else 1.0


@pytest.mark.parametrize("key", KINDS)
def test_there_are_as_many_hits_as_rows_and_no_fewer_of_the_nearest_than_among_all_rows(
    key: str, rows: NDArray[np.float32], queries: NDArray[np.float32]
) -> None:
    index = build(key, rows, KINDS[key])
    among_all = recall(index, rows, queries, choose(1))
    for share in SHARES:
        assert recall(index, rows, queries, choose(share)) >= among_all - 0.08, share  # 80 neighbors: 0.0125 each


@pytest.mark.parametrize("key", ["Flat", "IVF64,Flat", "HNSW16,Flat", "IVF64,PQ8x4fs,Refine(SQfp16)"])
def test_few_rows_are_compared_one_by_one(key: str, rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    index = build(key, rows, KINDS[key])
    assert recall(index, rows, queries, choose(0.01)) >= 0.99
    assert search_within(index, queries, K, Within(choose(0.01))).method == "exact"


def test_lists_that_would_do_for_all_rows_do_not_for_a_tenth(
    rows: NDArray[np.float32], queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(within, "EXACT_ROWS", 0)
    index, kept = build("IVF64,Flat", rows, Settings({"nprobe": 2})), choose(0.1)
    found = search_within(index, queries, K, Within(kept))
    assert found.settings["nprobe"] == 20
    assert found.method == "widened"
    mask = np.zeros(ROWS, np.bool_)
    mask[kept] = True
    narrow = index.search_allowed(queries, K, index.settings, mask)
    truth = kept[np.argsort(-(queries @ rows[kept].T), axis=1)[:, :K]]

    def found_of(hits: list[NDArray[np.int64]]) -> float:
        return float(np.mean([np.isin(best, ids).mean() for ids, best in zip(hits, truth, strict=True)]))

    assert found_of([hits.ids for hits in found.hits]) > found_of([hits.ids for hits in narrow]) + 0.2


def test_a_graph_that_ends_early_is_compared_whole(
    rows: NDArray[np.float32], queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(within, "GRAPH_ROWS", 0)
    monkeypatch.setattr(within, "widen", lambda _index, settings, _allowed: settings | {"efSearch": 1})
    index = build("HNSW16,Flat", rows, Settings({"efSearch": 1}))
    assert recall(index, rows, queries, choose(0.0025)) == 1.0


def test_parts_give_their_own_rows(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    halves = [build("Flat", some, Settings()).index for some in (rows[:1500], rows[1500:])]
    index = Index([OpenPart(halves[0]), OpenPart(halves[1], 1500)], NO_ROWS)
    for share in SHARES:
        assert recall(index, rows, queries, choose(share)) == 1.0


def test_a_graph_with_ids_of_its_own_is_compared_by_them(
    rows: NDArray[np.float32], queries: NDArray[np.float32]
) -> None:
    graph = faiss.index_factory(DIM, "IDMap,HNSW16,Flat", faiss.METRIC_INNER_PRODUCT)
    graph.add_with_ids(rows[::-1].copy(), np.arange(ROWS)[::-1].copy())
    assert recall(Index(graph, NO_ROWS), rows, queries, choose(0.01)) == 1.0


@pytest.mark.parametrize("kinds", [*permutations(["Flat", "HNSW16", "IVF32,Flat"]), ("IVF4,Flat", "IVF64,Flat")])
def test_each_part_of_an_index_of_several_kinds_is_searched_by_its_own_settings(
    kinds: tuple[str, ...], rows: NDArray[np.float32], queries: NDArray[np.float32]
) -> None:
    firsts = [0, 1000, 3000][: len(kinds)]
    parts = [
        OpenPart(build(kind, piece, Settings()).index, first)
        for kind, first, piece in zip(kinds, firsts, np.split(rows, firsts[1:]), strict=True)
    ]
    index = Index(parts, NO_ROWS)
    everything = index.search_many(queries, ROWS)
    assert [len(hits.ids) for hits in everything] == [ROWS] * len(queries)
    for share in (0.01, 0.5):
        kept = choose(share)
        found = search_within(index, queries, len(kept), Within(kept))
        assert (found.method, found.kept) == ("exact", len(kept))
        for hits, query in zip(found.hits, queries, strict=True):
            assert sorted(hits.ids.tolist()) == kept.tolist()
            np.testing.assert_allclose(hits.scores, rows[hits.ids] @ query, atol=1e-5)
    best = index.search_many(queries, K, Settings({"nprobe": 64}))
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :K]
    shares = [np.isin(nearest, hits.ids).mean() for hits, nearest in zip(best, truth, strict=True)]
    assert np.mean(shares) > (0.9 if index.has_graph else 0.999)


def test_a_graph_has_as_many_hits_as_are_wanted(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    index = build("HNSW16", rows, Settings())
    assert [len(hits.ids) for hits in index.search_many(queries, 2000)] == [2000] * len(queries)


def test_a_search_that_leaves_codes_out_is_not_said_to_compare_all(
    rows: NDArray[np.float32], queries: NDArray[np.float32]
) -> None:
    for most, method in ((100, "widened"), (0, "exact")):
        index = build("IVF64,Flat", rows, Settings({"nprobe": 64, "max_codes": most}))
        assert search_within(index, queries, 1, Within(choose(0.5))).method == method


def test_many_queries_are_searched_block_by_block(
    rows: NDArray[np.float32], queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build("IVF64,Flat", rows, Settings({"nprobe": 64}))
    at_once = [hits.ids.tolist() for hits in search_within(index, queries, K, Within(choose(0.5))).hits]
    monkeypatch.setattr(search_index, "HITS_AT_ONCE", 3 * K)
    assert [len(some) for some in index.split(queries, K)] == [3, 3, 2]
    assert [hits.ids.tolist() for hits in search_within(index, queries, K, Within(choose(0.5))).hits] == at_once


@pytest.mark.parametrize("has_stored", [False, True])
def test_zero_rows_that_lists_do_not_hold_are_never_hits(
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    write_run: Callable[..., Path],
    tmp_path: Path,
    has_stored: bool,
) -> None:
    empty, filled = np.arange(0, ROWS, 2), np.arange(1, ROWS, 2)
    lists = faiss.index_factory(DIM, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(rows)
    lists.add_with_ids(rows[filled], filled)
    index = Index(lists, empty, row_count=ROWS)
    all_rows = rows.copy()
    all_rows[empty] = 0
    stored = open_vectors(EmbeddingsFolder(str(write_run(tmp_path, [all_rows]))), "img_emb") if has_stored else None
    found = search_within(index, queries, K, Within(np.arange(6), stored))
    assert [sorted(hits.ids.tolist()) for hits in found.hits] == [[1, 3, 5]] * len(queries)
    assert found.kept == 3


def test_rows_without_an_embedding_are_never_hits(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    index = build("Flat", rows, Settings())
    index.empty_rows = np.array([2, 5])
    found = search_within(index, queries, K, Within(np.array([1, 2, 3, 5])))
    assert [sorted(hits.ids.tolist()) for hits in found.hits] == [[1, 3]] * len(queries)
    assert found.kept == 2


def test_stored_embeddings_are_compared_where_they_are_given(
    rows: NDArray[np.float32], queries: NDArray[np.float32], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    stored = open_vectors(EmbeddingsFolder(str(write_run(tmp_path, [rows.astype(np.float16)]))), "img_emb")
    index = build("PQ16x4fs", rows, Settings())
    kept = choose(0.01)
    found = search_within(index, queries, K, Within(kept, stored))
    exact = queries @ rows[kept].T
    for hits, scores in zip(found.hits, exact, strict=True):
        assert np.allclose(hits.scores, np.sort(scores)[::-1][:K], atol=2e-3)


def test_an_answer_says_how_it_was_found(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    index = build("IVF64,Flat", rows, KINDS["IVF64,Flat"])
    said = [search_within(index, queries, K, Within(choose(share))).sentence() for share in (0, 0.01, 0.5)]
    assert said[0] == "no row meets the condition"
    assert said[1] == "40 rows kept, all of them compared"
    assert said[2].startswith("2,000 rows kept, searched with nprobe=16")
