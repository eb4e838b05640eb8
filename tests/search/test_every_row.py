"""All rows compared: a graph of clusters has no links between them, and a search of lists passes most of them by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval.layout import IndexFolder
from clip_retrieval.query import answer as query_answer
from clip_retrieval.query.answer import answer_many
from clip_retrieval.query.config import SearcherConfig, SelectionConfig
from clip_retrieval.query.searcher import open_searcher
from clip_retrieval.search import every_row, graph_entries, within
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.index import Index
from clip_retrieval.search.settings import Settings
from clip_retrieval.search.tree import list_nodes
from clip_retrieval.search.within import Within, search_within

ROWS, DIM, CLUSTERS = 3000, 32, 60
NO_ROWS = np.empty(0, np.int64)
Rows = NDArray[np.float32]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return clustered(np.random.default_rng(1).integers(0, CLUSTERS, ROWS))


def clustered(owners: NDArray[np.int64]) -> Rows:
    """Return a row near the center of each of these clusters."""
    random = np.random.default_rng(0)
    found = random.standard_normal((CLUSTERS, DIM))[owners] + 0.3 * random.standard_normal((len(owners), DIM))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found, np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_row, "ROWS_AT_ONCE", 700)
    monkeypatch.setattr(every_row, "QUERIES_AT_ONCE", 2)


def build(rows: Rows, key: str = "HNSW4", metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.Index:
    index = faiss.index_factory(DIM, key, metric)
    index.train(rows)
    index.add(rows)
    return index


def ask(rows: Rows) -> Rows:
    return rows[:5] / 2 + rows[100:105] / 2


def mixed(rows: Rows) -> Rows:
    """Return queries between many clusters, of which the graph reaches a few."""
    return np.asarray(rows[: 5 * 40].reshape(5, 40, DIM).mean(axis=1))


def check(found: list[NDArray[np.int64]], queries: Rows, rows: Rows, count: int) -> None:
    """Check that hits are the nearest rows; rows whose scores nearly tie with the last one's may differ."""
    for ids, query in zip(found, queries, strict=True):
        scores = rows @ query
        last = np.sort(scores)[-count]
        assert len(ids) == len(set(ids.tolist())) == count
        assert (scores[ids] >= last - 1e-4).all()


KINDS = ["HNSW4", "HNSW4,SQfp16", "PCAR32,HNSW4", "HNSW4,SQ4,Refine(Flat)"]


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2], ids=["IP", "L2"])
@pytest.mark.parametrize("key", KINDS)
def test_a_graph_in_pieces_gives_as_many_hits_as_are_asked_for(key: str, metric: int, rows: Rows) -> None:
    native, queries = build(rows, key, metric), ask(rows)
    assert (native.search(queries, ROWS)[1] >= 0).sum(axis=1).max() < ROWS
    index = Index(native, NO_ROWS)
    for hits, query in zip(index.search_many(queries, ROWS), queries, strict=True):
        assert sorted(hits.ids.tolist()) == list(range(ROWS))
        assert (np.diff(hits.scores) <= 0).all()
        scores = dict(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True))
        usual = index.search(query, 3)  # which the graph finds
        np.testing.assert_allclose(usual.scores, [scores[row] for row in usual.ids.tolist()], atol=1e-3)


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2], ids=["IP", "L2"])
@pytest.mark.parametrize("key", KINDS)
@pytest.mark.parametrize(("count", "size"), [(10, 5), (200, 50)])
def test_a_large_graph_in_pieces_is_entered_at_more_rows(
    key: str, metric: int, count: int, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of 60 clusters of 50, each one or ten pieces: nearly the best hits, without comparing all rows."""
    monkeypatch.setattr(graph_entries, "MOST_COMPARED", 0)
    monkeypatch.setattr(graph_entries, "ROWS_DRAWN", 500)
    monkeypatch.setattr(graph_entries, "compare_every_row", None)
    rows = clustered(np.repeat(np.arange(CLUSTERS), ROWS // CLUSTERS))
    native, queries = build(rows, key, metric), rows[25:1525:300] / 2 + rows[75:1575:300] / 2
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for node in list_nodes(native):
        if isinstance(node, faiss.IndexHNSW):
            cut(node, size)
    index = Index(native, np.arange(0, ROWS, 10), Settings({"efSearch": 1}))
    for _ in range(2):
        found = index.search_many(queries, count)
        for hits, query in zip(found, queries, strict=True):
            assert len(hits.ids) == len(set(hits.ids.tolist())) == count
            assert (hits.ids % 10 > 0).all()
            assert (np.diff(hits.scores) <= 0).all()
            np.testing.assert_allclose(
                hits.scores, rows[hits.ids] @ query, atol=0.01 if key.startswith("HNSW4") and "SQ4" not in key else 0.15
            )
            best = np.sort(np.delete(rows, np.arange(0, ROWS, 10), axis=0) @ query)[-count:]
            assert hits.scores.mean() > best.mean() - 0.15
    assert caplog.text.count("its graph is in pieces") == 1


def cut(graph: Any, size: int) -> None:
    """Cut the links of the lowest level, where hits come from, between pieces of so many rows."""
    hnsw = graph.hnsw
    links = faiss.vector_to_array(hnsw.neighbors)
    for row, first in enumerate(faiss.vector_to_array(hnsw.offsets)[:-1].tolist()):
        own = links[first : first + hnsw.nb_neighbors(0)]
        own[own // size != row // size] = -1
        own[:] = np.sort(own)[::-1]  # faiss stops at the first -1
    faiss.copy_array_to_vector(links, hnsw.neighbors)


def test_where_entries_reach_too_few_rows_all_are_compared(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_entries, "MOST_COMPARED", 0)
    monkeypatch.setattr(graph_entries, "ROWS_DRAWN", 5)
    native = build(rows)
    cut(native, 10)
    for hits, query in zip(Index(native, NO_ROWS).search_many(ask(rows), 100), ask(rows), strict=True):
        check([hits.ids], query[None], rows, 100)


def test_all_rows_are_compared_if_no_row_that_was_drawn_may_be_a_hit(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_entries, "MOST_COMPARED", 0)
    monkeypatch.setattr(graph_entries, "ROWS_DRAWN", 2)  # the first and the last
    native, kept = build(rows), np.arange(1, ROWS - 1)
    cut(native, 10)
    for hits, query in zip(Index(native, np.array([0, ROWS - 1])).search_many(ask(rows), 100), ask(rows), strict=True):
        check([hits.ids - 1], query[None], rows[kept], 100)


def test_hits_of_every_row_are_the_best_of_all(rows: Rows) -> None:
    index, queries = Index(build(rows), NO_ROWS, Settings({"efSearch": 1})), mixed(rows)
    check([hits.ids for hits in index.search_many(queries, 10, every_row=True)], queries, rows, 10)
    with pytest.raises(AssertionError):
        check([hits.ids for hits in index.search_many(queries, 10)], queries, rows, 10)


def test_all_lists_are_scanned_where_the_best_of_all_are_asked_for(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "EXACT_ROWS", 0)
    index, queries = Index(build(rows, "IVF60,Flat"), NO_ROWS), mixed(rows)
    check([hits.ids for hits in index.search_many(queries, 10, every_row=True)], queries, rows, 10)
    kept = np.arange(0, ROWS, 2)
    among = search_within(index, queries, 10, Within(kept, every_row=True))
    check([np.searchsorted(kept, hits.ids) for hits in among.hits], queries, rows[kept], 10)
    assert among.method == "exact"
    for few in (
        index.search_many(queries, 10),
        index.search_many(queries, 10, Settings({"nprobe": 1}), every_row=True),
    ):
        with pytest.raises(AssertionError):
            check([hits.ids for hits in few], queries, rows, 10)


def test_rows_without_an_embedding_are_no_hits_where_all_are_compared(rows: Rows) -> None:
    empty = np.arange(0, ROWS, 3)
    some = rows.copy()
    some[empty] = 0
    index = Index(build(some), empty)
    for hits in index.search_many(ask(rows), ROWS):
        assert len(hits.ids) == ROWS - len(empty)
        assert (hits.ids % 3 != 0).all()


def test_ids_of_an_id_map_and_of_a_part_are_kept(rows: Rows) -> None:
    mapped = faiss.index_factory(DIM, "IDMap,HNSW4", faiss.METRIC_INNER_PRODUCT)
    mapped.add_with_ids(rows[:1000], np.arange(1000)[::-1].copy())
    flat = build(rows[1000:], "Flat")
    index, queries = Index([OpenPart(mapped), OpenPart(flat, 1000)], NO_ROWS), ask(rows)
    placed = np.concatenate([rows[:1000][::-1], rows[1000:]])
    found = [hits.ids for hits in index.search_many(queries, ROWS)]
    check(found, queries, placed, ROWS)
    check([ids[:50] for ids in found], queries, placed, 50)


def test_a_graph_behind_a_file_without_one_is_compared_among_some_rows(rows: Rows) -> None:
    parts = [OpenPart(build(rows[:1000], "Flat")), OpenPart(build(rows[1000:]), 1000)]
    kept, queries = np.arange(0, ROWS, 2), ask(rows)
    found = search_within(Index(parts, NO_ROWS), queries, 40, Within(kept, every_row=True))
    assert found.method == "exact"
    check([np.searchsorted(kept, hits.ids) for hits in found.hits], queries, rows[kept], 40)
    assert all(np.isin(hits.ids, kept).all() for hits in found.hits)


@pytest.mark.parametrize("where", [None, "n < 2000"])
def test_all_that_are_as_similar_are_found_in_a_graph(
    where: str | None, rows: Rows, tmp_path: Path, write_index: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_answer, "FIRST_ASKED", 20)
    monkeypatch.setattr(within, "GRAPH_ROWS", 0)
    metadata = pd.DataFrame({"caption": [""] * ROWS, "n": range(ROWS)})
    folder = write_index(tmp_path / "ix", metadata, rows=rows)
    faiss.write_index(build(rows), str(folder / "image.index"))
    searcher = open_searcher(IndexFolder(str(folder)), SearcherConfig())
    queries = [searcher.embed_vector(query, "a vector") for query in (*ask(rows), *mixed(rows))]
    for count in (10, 100):  # a graph finds some, or too few of these
        scores = [rows[: 2000 if where else ROWS] @ query.embedding for query in queries]
        threshold = float(np.mean([np.sort(some)[-count] for some in scores]))
        selection = SelectionConfig(num_results=0, threshold=threshold, where=where)
        for found, some in zip(answer_many(searcher, queries, selection), scores, strict=True):
            sure, possible = (np.flatnonzero(some > threshold + margin).tolist() for margin in (1e-5, -1e-5))
            assert set(sure) <= set(found.found.ids.tolist()) <= set(possible)
