"""Searching: empty rows and padding are never hits, and what an index was tuned to is kept."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.index.search import Index, drop_missing, open_index
from clip_retrieval.layout import IndexFolder

Rows = Callable[..., NDArray[np.float32]]
COUNT, DIM = 1500, 16
EMPTY = np.arange(0, COUNT, 3, dtype=np.int64)
KEYS = {
    "Flat": "",
    "HNSW16": "efSearch=40",
    "IVF16,Flat": "nprobe=3",
    "IVF16,SQ8": "nprobe=3",
    "IVF16_HNSW8,Flat": "nprobe=3,quantizer_efSearch=8",
    "OPQ8_16,IVF16,PQ8x4": "nprobe=3",
    "OPQ8_16,IVF16_HNSW8,PQ8x4": "nprobe=3,quantizer_efSearch=8",
}


@pytest.fixture(scope="module")
def rows(unit_rows: Rows) -> NDArray[np.float32]:
    found = unit_rows(COUNT, DIM)
    found[EMPTY] = 0
    return found


def build(rows: NDArray[np.float32], key: str, parameters: str = "") -> Any:
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexPreTransform):
        faiss.downcast_VectorTransform(index.chain.at(0)).niter = 2  # 50 would take seconds
    index.train(rows)
    index.add(rows)
    if parameters:
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    return index


def reread(index: Any, path: Path) -> Any:
    faiss.write_index(index, str(path))
    return faiss.read_index(str(path))


@pytest.mark.parametrize("key", KEYS)
def test_empty_rows_are_never_hits(rows: NDArray[np.float32], key: str) -> None:
    index = Index(build(rows, key, KEYS[key]), EMPTY)
    found = [index.search(query, 50) for query in rows[1:60:3]]
    assert not any(np.isin(result.ids, EMPTY).any() for result in found)
    assert not any((result.ids < 0).any() for result in found)


@pytest.mark.parametrize("key", KEYS)
def test_skipping_rows_finds_what_a_plain_search_finds_without_them(
    rows: NDArray[np.float32], tmp_path: Path, key: str
) -> None:
    plain = reread(build(rows, key, KEYS[key]), tmp_path / "plain.index")
    skipping = Index(plain, EMPTY)
    gc.collect()  # the search parameters must keep alive what they point to
    for query in rows[1:60:3]:
        _, ids = plain.search(query[None], COUNT)
        kept = ids[0][(ids[0] >= 0) & ~np.isin(ids[0], EMPTY)]
        assert skipping.search(query, 10).ids.tolist() == kept[:10].tolist()


def test_a_tuned_nprobe_bounds_what_is_searched(rows: NDArray[np.float32]) -> None:
    narrow, wide = (Index(build(rows, "IVF16,Flat", f"nprobe={count}"), EMPTY) for count in (1, 16))
    assert len(narrow.search(rows[1], COUNT).ids) < len(wide.search(rows[1], COUNT).ids) == COUNT - len(EMPTY)


def test_scores_fall_and_are_inner_products(rows: NDArray[np.float32]) -> None:
    result = Index(build(rows, "Flat"), EMPTY).search(rows[1], 20)
    assert result.ids[0] == 1
    np.testing.assert_allclose(result.scores, rows[result.ids] @ rows[1], atol=1e-5)
    assert (np.diff(result.scores) <= 0).all()


@pytest.mark.parametrize("key", ["Flat", "HNSW16"])
@pytest.mark.parametrize("k", [1, 9, 10, 11, 1000])
def test_at_most_every_row_is_found_once(unit_rows: Rows, key: str, k: int) -> None:
    result = Index(build(unit_rows(10), key), np.empty(0, np.int64)).search(unit_rows(10)[0], k)
    assert len(set(result.ids.tolist())) == len(result.ids) == min(k, 10)


def test_an_index_whose_lists_end_early_gives_fewer_hits_and_no_padding(rows: NDArray[np.float32]) -> None:
    index = Index(build(rows, "IVF16,Flat", "nprobe=1"), np.empty(0, np.int64))
    result = index.search(rows[1], COUNT)
    assert 0 < len(result.ids) < COUNT
    assert result.ids.min() >= 0


def test_id_minus_one_is_never_a_row() -> None:
    lowest = float(np.finfo(np.float32).min)
    result = drop_missing(np.array([4, -1, 2, -1]), np.array([0.9, lowest, 0.5, lowest], np.float32))
    assert result.ids.tolist() == [4, 2]
    assert result.scores.tolist() == pytest.approx([0.9, 0.5])


def test_an_index_of_nothing_but_empty_rows_answers_with_nothing(unit_rows: Rows) -> None:
    index = Index(build(np.zeros((5, 4), np.float32), "Flat"), np.arange(5))
    assert len(index.search(unit_rows(1, 4)[0], 3).ids) == 0


def test_a_query_of_another_dimension_is_refused(rows: NDArray[np.float32]) -> None:
    with pytest.raises(QueryError, match="the query has 8 dimensions, the index has 16"):
        Index(build(rows, "Flat"), EMPTY).search(np.ones(8, np.float32), 3)


def test_a_missing_index_says_which_there_are(rows: NDArray[np.float32], tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"no image\.index; `clip-retrieval index` makes one"):
        open_index(IndexFolder(str(tmp_path)), "image")
    faiss.write_index(build(rows, "Flat"), str(tmp_path / "text.index"))
    with pytest.raises(QueryError, match=r"no image.index; it has text.index \(choose with --modality\)"):
        open_index(IndexFolder(str(tmp_path)), "image")


@pytest.mark.parametrize("content", [b"", b"no index at all", b"IxFI"])
def test_a_broken_index_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.index").write_bytes(content)
    with pytest.raises(StorageError, match=r"image\.index is no readable faiss index"):
        open_index(IndexFolder(str(tmp_path)), "image")
