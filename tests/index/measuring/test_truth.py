"""Exact neighbors and drawn queries, against numpy on all rows at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.index.measuring import queries as queries_module
from clip_retrieval.index.measuring import truth as truth_module
from clip_retrieval.index.measuring.queries import QuerySet, count_queries, draw_queries
from clip_retrieval.index.measuring.truth import Truth, find_truth
from clip_retrieval.layout import EmbeddingsFolder

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
OpenImages = Callable[..., Vectors]


@pytest.fixture
def open_images(tmp_path: Path, write_run: WriteRun) -> OpenImages:
    """Give a function that writes image embeddings, a list of arrays, and opens them."""

    def write(parts: list[NDArray[Any]], texts: list[NDArray[Any]] | None = None, name: str = "img_emb") -> Vectors:
        vectors = open_vectors(EmbeddingsFolder(str(write_run(tmp_path / "emb", parts, texts or []))), name)
        assert vectors is not None
        return vectors

    return write


def queries_of(rows: NDArray[np.float32], own_ids: list[int] | None = None) -> QuerySet:
    return QuerySet("image", rows, None if own_ids is None else np.array(own_ids))


def best_rows(rows: NDArray[np.float32], query: NDArray[np.float32]) -> list[int]:
    return list(np.argsort(-(rows @ query), kind="stable"))


@pytest.mark.parametrize("block_bytes", [64, 640, 1 << 25])
def test_neighbors_are_those_of_all_rows_over_files_and_blocks(
    unit_rows: Rows, open_images: OpenImages, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(truth_module, "TRUTH_BLOCK_BYTES", block_bytes)
    rows, queries = unit_rows(301), unit_rows(7, seed=1)
    found = find_truth(open_images(np.split(rows, [1, 40, 41, 200])), [queries_of(queries)])[0]
    assert [list(ids) for ids in found.ids] == [best_rows(rows, query)[:128] for query in queries]
    assert np.allclose(found.scores[:, 0], (queries @ rows.T).max(axis=1))


def test_a_file_without_any_embedding_is_nobodys_neighbor(unit_rows: Rows, open_images: OpenImages) -> None:
    rows, queries = unit_rows(300), unit_rows(40, seed=1)  # so many that faiss multiplies matrices
    rows[100:200] = 0
    found = find_truth(open_images(np.split(rows, [100, 200])), [queries_of(queries)])[0]
    assert not np.isin(found.ids, np.arange(100, 200)).any()
    filled = np.flatnonzero(rows.any(axis=1))
    assert [list(ids) for ids in found.ids] == [list(filled[best_rows(rows[filled], q)[:128]]) for q in queries]
    assert found.candidate_count == 200


def test_rows_that_come_best_last_are_found(unit_rows: Rows, open_images: OpenImages) -> None:
    query = unit_rows(1, seed=1)[0]
    rows = unit_rows(500)
    rows = rows[np.argsort(rows @ query)]
    assert list(find_truth(open_images([rows]), [queries_of(query[None])])[0].ids[0][:3]) == [499, 498, 497]


def test_several_sets_of_queries_get_each_their_own(unit_rows: Rows, open_images: OpenImages) -> None:
    rows, queries = unit_rows(200), unit_rows(5, seed=1)
    first, second = find_truth(open_images([rows]), [queries_of(rows[:2], [0, 1]), queries_of(queries)])
    assert first.ids.shape == (2, 128)
    assert list(second.ids[4]) == best_rows(rows, queries[4])[:128]


def test_a_querys_own_row_is_left_out(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = unit_rows(200)
    found = find_truth(open_images([rows]), [queries_of(rows[[17, 3]], [17, 3])])[0]
    assert list(found.ids[0]) == [row for row in best_rows(rows, rows[17]) if row != 17][:128]
    assert 3 not in found.ids[1]
    assert found.candidate_count == 199


def test_zero_rows_are_nobodys_neighbors(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = -np.abs(unit_rows(9))
    rows[[0, 4]] = 0
    found = find_truth(open_images([rows]), [queries_of(np.abs(unit_rows(2, seed=1)))])[0]
    assert found.candidate_count == 7
    assert set(found.ids[0]) == {1, 2, 3, 5, 6, 7, 8, -1}
    assert found.recall(np.array([[0, 4], [4, 0]]), 2) == 0


def perfect(found: Truth) -> NDArray[np.int64]:
    return found.ids[:, :100]


def test_recall_is_the_share_of_the_nearest_rows(unit_rows: Rows, open_images: OpenImages) -> None:
    found = find_truth(open_images([unit_rows(200)]), [queries_of(unit_rows(2, seed=1))])[0]
    answers = perfect(found).copy()
    answers[0, :5], answers[1, 0] = -1, found.ids[1, 100]  # five missing; the best gives way to the 101st
    assert found.recall(perfect(found), 100) == 1
    assert found.recall(answers, 1) == 0
    assert found.recall(answers, 10) == pytest.approx((5 + 9) / 20)
    assert found.recall(answers, 100) == pytest.approx((95 + 99) / 200)


def test_the_order_within_the_first_k_does_not_count(unit_rows: Rows, open_images: OpenImages) -> None:
    found = find_truth(open_images([unit_rows(50)]), [queries_of(unit_rows(3, seed=1))])[0]
    assert found.recall(found.ids[:, 9::-1], 10) == 1


def test_fewer_rows_than_k_can_all_be_found(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = unit_rows(6)
    found = find_truth(open_images([rows]), [queries_of(rows[:2], [0, 1])])[0]
    answers = np.array([[1, 2, 3, 4, 5], [0, 2, 3, -1, -1]])
    assert found.recall(answers, 100) == pytest.approx((5 + 3) / 10)


def test_a_row_that_is_alone_has_no_recall(unit_rows: Rows, open_images: OpenImages) -> None:
    found = find_truth(open_images([unit_rows(1)]), [queries_of(unit_rows(1), [0])])[0]
    assert found.recall(np.array([[-1]]), 1) is None


def test_any_of_equal_rows_will_do(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = unit_rows(400).astype(np.float16)
    rows[100:] = rows[100]  # three hundred copies: more than are kept
    found = find_truth(open_images([rows]), [queries_of(rows[100:101].astype(np.float32))])[0]
    assert found.recall(np.arange(390, 400)[None], 10) == 1
    assert found.recall(np.array([[*range(391, 400), 5]]), 10) == pytest.approx(0.9)


def test_a_near_row_is_no_equal_one(open_images: OpenImages) -> None:
    rows = np.array([[1, 0], [0.9999, 0.014], [0.999, 0.0447], [0, 1]], np.float32)
    found = find_truth(open_images([rows]), [queries_of(np.array([[1, 0]], np.float32))])[0]
    assert found.recall(np.array([[1]]), 1) == 0
    assert found.recall(np.array([[0]]), 1) == 1


def test_queries_are_drawn_from_the_whole_folder_and_always_the_same(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = unit_rows(2_000).astype(np.float16)
    vectors = open_images(np.split(rows, [3, 900]))
    first, again = (draw_queries("image", {"image": vectors})["image"] for _ in range(2))
    assert first.own_ids is not None
    assert again.own_ids is not None
    assert np.array_equal(first.own_ids, again.own_ids)
    assert len(set(first.own_ids.tolist())) == 256
    assert first.own_ids.max() > 1_900
    assert first.own_ids.min() < 100
    assert np.array_equal(first.rows, rows[first.own_ids].astype(np.float32))


def test_zero_rows_and_broken_ones_are_no_queries(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = np.zeros((3_000, 16), np.float32)
    rows[[5, 77, 2_999]] = unit_rows(3)
    rows[6] = np.nan
    drawn = draw_queries("image", {"image": open_images([rows])})["image"]
    assert drawn.own_ids is not None
    assert sorted(drawn.own_ids) == [5, 77, 2_999]


def test_some_zero_rows_do_not_multiply_what_is_in_memory(
    unit_rows: Rows, open_images: OpenImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(3_000)
    rows[::7] = 0
    lengths = []

    def read(vectors: Vectors, ids: NDArray[np.int64], stop: Event | None) -> NDArray[np.float32]:
        lengths.append(len(ids))
        return read_rows(vectors, ids, stop)

    monkeypatch.setattr(queries_module, "read_rows", read)
    ids, drawn = queries_module.draw_rows(open_images(np.split(rows, [5, 1_700])), 100)
    assert set(lengths) == {100}
    assert np.array_equal(drawn, rows[ids])
    assert (ids % 7 > 0).all()


def test_rows_that_chance_misses_are_queries(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = np.zeros((40_000, 4), np.float16)
    rows[[20_001, 39_999]] = unit_rows(2, 4)
    drawn = draw_queries("image", {"image": open_images(np.split(rows, [30_000]))})["image"]
    assert drawn.own_ids is not None
    assert set(drawn.own_ids) <= {20_001, 39_999}
    assert len(drawn) >= 1


def test_captions_are_queries_of_the_image_index_and_no_rows_of_it(unit_rows: Rows, open_images: OpenImages) -> None:
    images = open_images([unit_rows(10)], [unit_rows(10, seed=1)])
    texts = open_vectors(images.folder, "text_emb")
    assert texts is not None
    drawn = draw_queries("image", {"image": images, "text": texts})
    assert drawn["text"].own_ids is None
    assert draw_queries("text", {"image": images, "text": texts})["text"].own_ids is not None


def test_a_modality_without_rows_has_no_queries(unit_rows: Rows, open_images: OpenImages) -> None:
    images = open_images([unit_rows(10)], [np.zeros((10, 16), np.float32)])
    texts = open_vectors(images.folder, "text_emb")
    assert texts is not None
    assert list(draw_queries("image", {"image": images, "text": texts})) == ["image"]


def test_embeddings_of_another_dimension_are_no_queries(unit_rows: Rows, open_images: OpenImages) -> None:
    images = open_images([unit_rows(10)], [unit_rows(10, 8)])
    texts = open_vectors(images.folder, "text_emb")
    assert texts is not None
    assert list(draw_queries("image", {"image": images, "text": texts})) == ["image"]


def test_more_rows_mean_fewer_queries_within_bounds() -> None:
    counts = [count_queries(rows, 512) for rows in (0, 1_000, 200_000, 500_000, 1_000_000, 5_000_000_000)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == counts[2] == 256
    assert 64 < counts[4] < 128
    assert counts[-1] == 64


def test_rows_are_read_by_id_in_any_order(unit_rows: Rows, open_images: OpenImages) -> None:
    rows = unit_rows(30)
    ids = np.array([29, 0, 7, 7, 11])
    assert np.array_equal(read_rows(open_images(np.split(rows, [7, 8, 12])), ids), rows[ids])
