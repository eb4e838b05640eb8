"""What is measured of an index: recall of known answers, times, settings; the index stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.measuring.bench import Bench, answer
from clip_retrieval.index.measuring.evaluate import evaluate_index, find_truths
from clip_retrieval.index.measuring.knobs import find_knobs, reconstruction_error
from clip_retrieval.index.measuring.quality import CurvePoint, Quality, QueryQuality, Times
from clip_retrieval.index.measuring.queries import QuerySet
from clip_retrieval.index.measuring.truth import find_truth
from clip_retrieval.index.measuring.tuning import Target
from clip_retrieval.layout import EmbeddingsFolder, Modality
from clip_retrieval.search.index import Index
from clip_retrieval.search.settings import Settings, settings_of

Rows = NDArray[np.float32]
Found = dict[Modality, Vectors]
NO_ROWS = np.empty(0, np.int64)
TREES = ["Flat", "SQ8", "HNSW8", "IVF16,Flat", "IVF16,SQ8", "IVF16_HNSW8,PQ8x4np", "IVF16,PQ8x4fs", "refined"]


pytestmark = pytest.mark.usefixtures("one_thread")


def grow(kind: str, rows: Rows) -> Any:
    """Return an index of the rows; `refined` is a rotation, coarse codes in lists, and fine codes."""
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "refined":
        tree = faiss.index_factory(rows.shape[1], "RR16,IVF16,PQ8x4fs,Refine(SQ8)", metric)
    else:
        tree = faiss.index_factory(rows.shape[1], kind, metric)
    tree.train(rows)
    tree.add(rows)
    return tree


@pytest.fixture
def open_run(tmp_path: Path, write_run: Callable[..., Path]) -> Callable[..., Found]:
    """Give a function that writes images and texts, and opens what is there."""

    def write(images: Rows, texts: Rows | None = None) -> Found:
        folder = EmbeddingsFolder(str(write_run(tmp_path / "emb", [images], [] if texts is None else [texts])))
        opened: dict[Modality, Vectors | None] = {
            "image": open_vectors(folder, "img_emb"),
            "text": open_vectors(folder, "text_emb"),
        }
        return {modality: vectors for modality, vectors in opened.items() if vectors is not None}

    return write


def measure(index: Index, modality: Modality, found: Found, target: Target | Settings) -> Quality:
    return evaluate_index(index, modality, find_truths(modality, found), target)


def of(quality: Quality, modality: Modality) -> QueryQuality:
    found = quality.by_modality[modality]
    assert found is not None
    return found


def test_an_exact_index_has_recall_1_for_both_kinds_of_queries(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    rows = unit_rows(500)
    quality = measure(Index(grow("Flat", rows), NO_ROWS), "image", open_run(rows, unit_rows(500, seed=1)), Target())
    for modality in ("image", "text"):
        assert of(quality, modality).recalls == {1: 1.0, 10: 1.0, 100: 1.0}
        assert of(quality, modality).query_count == 256
    assert quality.reconstruction_error == 0
    assert quality.settings == {}


def test_recalls_are_those_that_numpy_counts(unit_rows: Callable[..., Rows], open_run: Callable[..., Found]) -> None:
    rows, texts = unit_rows(150), unit_rows(150, seed=1)
    index = grow("IVF16,Flat", rows)
    quality = measure(Index(index, NO_ROWS), "image", open_run(rows, texts), Settings({"nprobe": 2}))
    index.nprobe = 2
    for k in (1, 10, 100):
        image, text = [], []
        for row in range(150):  # fewer rows than queries: each is one
            nearest = [i for i in np.argsort(-(rows @ rows[row])) if i != row][:k]
            found = [i for i in index.search(rows[row : row + 1], k + 1)[1][0] if i != row][:k]
            image.append(len(set(nearest) & set(found)) / k)
            nearest = list(np.argsort(-(rows @ texts[row]))[:k])
            text.append(len(set(nearest) & set(index.search(texts[row : row + 1], k)[1][0])) / k)
        assert of(quality, "image").recalls[k] == pytest.approx(np.mean(image))
        assert of(quality, "text").recalls[k] == pytest.approx(np.mean(text))
    assert 0.1 < np.mean(image) < 0.9


def test_many_hits_are_measured_as_searches_for_many_find_them(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    rows = unit_rows(150)
    index = Index(grow("IVF16,Flat", rows), NO_ROWS, Settings({"nprobe": 2}))
    quality = measure(index, "image", open_run(rows), Settings())
    assert of(quality, "image").recalls[100] == 1  # all lists: four rows are looked at for each hit
    recall = of(quality, "image").recalls[1]
    assert recall is not None
    assert recall < 1


def test_without_texts_only_images_are_measured(unit_rows: Callable[..., Rows], open_run: Callable[..., Found]) -> None:
    rows = unit_rows(60)
    quality = measure(Index(grow("Flat", rows), NO_ROWS), "image", open_run(rows), Target())
    assert quality.by_modality["text"] is None
    assert quality.to_json()["text"] is None
    assert quality.to_json()["image"]["recall@10"] == 1


def test_a_text_index_is_asked_with_texts_and_images(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    images, texts = unit_rows(60), unit_rows(60, seed=1)
    quality = measure(Index(grow("Flat", texts), NO_ROWS), "text", open_run(images, texts), Target())
    assert of(quality, "text").recalls[10] == of(quality, "image").recalls[10] == 1


def test_empty_rows_are_neither_queries_nor_answers(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    rows = unit_rows(60)
    rows[[3, 40]] = 0
    index = Index(grow("Flat", rows), np.array([3, 40]))
    quality = measure(index, "image", open_run(rows), Target())
    assert of(quality, "image").query_count == 58
    assert of(quality, "image").recalls[100] == 1


def test_a_single_row_has_no_recall(unit_rows: Callable[..., Rows], open_run: Callable[..., Found]) -> None:
    rows = unit_rows(1)
    quality = measure(Index(grow("Flat", rows), NO_ROWS), "image", open_run(rows), Target())
    assert of(quality, "image").recalls == {1: None, 10: None, 100: None}
    assert quality.to_json()["image"]["recall@1"] is None


def test_embeddings_that_are_all_zero_measure_nothing(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    with pytest.raises(IndexBuildError, match="nothing to measure"):
        measure(Index(grow("Flat", unit_rows(9)), NO_ROWS), "image", open_run(unit_rows(9) * 0), Target())


@pytest.mark.parametrize("kind", TREES)
def test_measuring_changes_no_index(unit_rows: Callable[..., Rows], open_run: Callable[..., Found], kind: str) -> None:
    rows = unit_rows(700)
    index = grow(kind, rows)
    before = faiss.serialize_index(index)
    quality = measure(Index(index, NO_ROWS), "image", open_run(rows, unit_rows(700, seed=1)), Target())
    assert np.array_equal(faiss.serialize_index(index), before)
    assert set(quality.settings) == {name for name, value in settings_of(index).items() if value}


@pytest.mark.parametrize("kind", ["IVF16,Flat", "HNSW8", "refined"])
def test_tuned_settings_answer_better_than_the_first_ones(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found], kind: str
) -> None:
    rows = unit_rows(2_000)
    found, index = open_run(rows, unit_rows(2_000, seed=1)), Index(grow(kind, rows), NO_ROWS)
    lowest = Settings(
        {"IVF16,Flat": {"nprobe": 1}, "HNSW8": {"efSearch": 1}}.get(kind, {"nprobe": 1, "k_factor_rf": 1})
    )
    first, tuned = measure(index, "image", found, lowest), measure(index, "image", found, Target(10_000))
    assert tuned.mean_recall is not None
    assert first.mean_recall is not None
    assert tuned.mean_recall > max(0.9, first.mean_recall + 0.1)
    assert tuned.curve
    assert tuned.shortfall() is None


def test_settings_that_are_given_are_kept(unit_rows: Callable[..., Rows], open_run: Callable[..., Found]) -> None:
    rows = unit_rows(700)
    quality = measure(Index(grow("IVF16,SQ8", rows), NO_ROWS), "image", open_run(rows), Settings({"nprobe": 3}))
    assert quality.settings["nprobe"] == 3
    assert quality.target is None
    assert "nprobe=3" in quality.info()["index_param"]


def test_settings_that_the_index_does_not_know_are_not_told(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    rows = unit_rows(700)
    given = Settings({"nprobe": 3, "efSearch": 9})
    quality = measure(Index(grow("IVF16,SQ8", rows), NO_ROWS), "image", open_run(rows), given)
    assert quality.info()["index_param"] == "nprobe=3"


def test_a_graph_over_lists_may_be_called_plainly(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    rows = unit_rows(700)
    index = Index(grow("IVF16_HNSW8,PQ8x4np", rows), NO_ROWS)
    quality = measure(index, "image", open_run(rows), Settings({"nprobe": 3, "efSearch": 9}))
    assert quality.info()["index_param"] == "nprobe=3,quantizer_efSearch=9"


def test_what_could_not_be_reached_is_said(unit_rows: Callable[..., Rows], open_run: Callable[..., Found]) -> None:
    rows = unit_rows(700)
    index = Index(grow("IVF16_HNSW8,PQ8x4np", rows), NO_ROWS)
    quality = measure(index, "image", open_run(rows), Target(10_000, 0.999))
    assert "recall@10 of 0.999 was not reached" in (quality.shortfall() or "")
    assert quality.to_json()["shortfall"] == quality.shortfall()


def test_a_wanted_recall_is_reached_with_fewer_lists_than_the_best(
    unit_rows: Callable[..., Rows], open_run: Callable[..., Found]
) -> None:
    rows = unit_rows(2_000)
    found, index = open_run(rows), Index(grow("IVF16,Flat", rows), NO_ROWS)
    enough = measure(index, "image", found, Target(10_000, 0.7))
    best = measure(index, "image", found, Target(10_000))
    assert enough.settings["nprobe"] < best.settings["nprobe"]
    assert (enough.mean_recall or 0) > 0.65


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("Flat", []),
        ("IVF16,SQ8", ["nprobe"]),
        ("IVF16_HNSW8,PQ8x4np", ["nprobe", "quantizer_efSearch"]),
        ("HNSW8", ["efSearch"]),
        ("refined", ["k_factor_rf", "nprobe"]),
    ],
)
def test_the_knobs_of_a_tree(unit_rows: Callable[..., Rows], kind: str, names: list[str]) -> None:
    knobs = find_knobs([grow(kind, unit_rows(700))])
    assert [knob.name for knob in knobs] == names
    for knob in knobs:
        assert list(knob.values) == sorted(set(knob.values))
        assert knob.name != "nprobe" or knob.values[-1] == 16


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("Flat", 0, 0), ("SQ8", 0.1, 2), ("IVF16,SQ8", 0.1, 3), ("HNSW8", 0, 0), ("refined", 0.1, 2)],
)
def test_the_reconstruction_error_is_in_percent(
    unit_rows: Callable[..., Rows], kind: str, low: float, high: float
) -> None:
    rows = unit_rows(700)
    error = reconstruction_error(grow(kind, rows), range(50), rows[:50])
    assert error is not None
    assert low <= error <= high


def test_lists_of_fast_scan_codes_cannot_tell_their_error(unit_rows: Callable[..., Rows]) -> None:
    rows = unit_rows(700)
    assert reconstruction_error(grow("IVF16,PQ8x4fs", rows), [0, 1], rows[:2]) is None


def test_own_rows_are_left_out_of_answers() -> None:
    def search(queries: Rows, k: int, settings: Any) -> NDArray[np.int64]:
        assert (len(queries), k, settings) == (3, 3, {})
        return np.array([[7, 1, 2], [1, 8, 2], [1, 2, 3]])

    queries = QuerySet("image", np.zeros((3, 2), np.float32), np.array([7, 8, 9]))
    assert answer(search, queries, 2, {}).tolist() == [[1, 2], [1, 2], [1, 2]]


def test_own_rows_bring_one_more_candidate_and_not_more() -> None:
    asked = []

    def search(queries: Rows, k: int, settings: Any) -> NDArray[np.int64]:
        asked.append(round(k * settings["k_factor_rf"]))
        return np.full((len(queries), k), -1)

    rows = np.zeros((1, 2), np.float32)
    answer(search, QuerySet("image", rows, np.array([7])), 10, {"k_factor_rf": 8})
    answer(search, QuerySet("text", rows, None), 10, {"k_factor_rf": 8})
    assert asked == [81, 80]


def test_times_are_of_single_queries(unit_rows: Callable[..., Rows], open_run: Callable[..., Found]) -> None:
    rows = unit_rows(20)
    asked: list[tuple[int, int]] = []

    def search(queries: Rows, k: int, settings: Any) -> NDArray[np.int64]:
        assert settings == {}
        asked.append((len(queries), k))
        return np.full((len(queries), k), -1)

    truth = find_truth(open_run(rows)["image"], [QuerySet("image", rows, None)])[0]
    times = Bench(search, {"image": truth}).milliseconds({}, 8)["image"]
    assert len(times) == 8
    assert set(asked) == {(1, 10)}
    assert len(asked) == 11  # three to warm up


@pytest.mark.parametrize(("tried", "words"), [(1.0, "the machine was busy"), (11.0, "even with the fastest settings")])
def test_a_query_that_takes_too_long_is_told(tried: float, words: str) -> None:
    curve = [CurvePoint(Settings({"nprobe": 1}), {"image": 0.5}, tried)]
    quality = Quality(
        settings=Settings({"nprobe": 1}),
        by_modality={},
        times=Times(12.0, 12.0, 13.0),
        curve=curve,
        target=Target(10.0),
    )
    assert words in (quality.shortfall() or "")


def test_the_keys_of_image_json_are_autofaiss_and_ours() -> None:
    measured = QueryQuality(9, {1: 0.5, 10: 0.61239, 100: None}, Times(1.0, 0.9, 2.0))
    quality = Quality(
        settings=Settings({"nprobe": 64}),
        by_modality={"image": measured, "text": None},
        times=Times(1.0, 0.9, 2.0),
        curve=(),
        target=Target(),
        reconstruction_error=3.0,
    )
    info = quality.info()
    assert info["index_param"] == "nprobe=64"
    assert (info["avg_search_speed_ms"], info["99p_search_speed_ms"], info["reconstruction error %"]) == (1, 2, 3)
    assert info["quality"]["image"] == {
        "queries": 9,
        "recall@1": 0.5,
        "recall@10": 0.6124,
        "recall@100": None,
        "ms": {"mean": 1.0, "p50": 0.9, "p99": 2.0},
    }
