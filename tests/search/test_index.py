"""Searching: empty rows and padding are never hits, and what an index was tuned to is kept."""

from __future__ import annotations

import errno
import gc
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from faiss.contrib.ondisk import merge_ondisk
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.cores import using_cores
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.search.results import SearchResult, drop_missing, merge
from clip_retrieval.search.settings import Settings, parse_settings, search_parameters

Rows = Callable[..., NDArray[np.float32]]
COUNT, DIM = 1500, 16
EMPTY = np.arange(0, COUNT, 3, dtype=np.int64)
KEYS = {
    "Flat": "",
    "HNSW16": "efSearch=40",
    "IVF16,Flat": "nprobe=3",
    "IVF16,SQ8": "nprobe=3",
    "IVF16_HNSW8,Flat": "nprobe=3,quantizer_efSearch=8",
    "OPQ8_16,IVF16,PQ8x4np": "nprobe=3",
    "OPQ8_16,IVF16_HNSW8,PQ8x4np": "nprobe=3,quantizer_efSearch=8",
}


@pytest.fixture(scope="module")
def rows(unit_rows: Rows) -> NDArray[np.float32]:
    found = unit_rows(COUNT, DIM)
    found[EMPTY] = 0
    return found


@cache
def trained(dim: int, data: bytes, key: str) -> NDArray[np.uint8]:
    index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexPreTransform) and key.startswith("OPQ"):
        faiss.downcast_VectorTransform(index.chain.at(0)).niter = 2  # 50 would take seconds
    index.train(np.frombuffer(data, np.float32).reshape(-1, dim))
    return np.asarray(faiss.serialize_index(index))


def make_empty(rows: NDArray[np.float32], key: str) -> Any:
    """Return an index that was trained with these rows: once, for all tests."""
    return faiss.deserialize_index(trained(rows.shape[1], rows.tobytes(), key))


def build(rows: NDArray[np.float32], key: str, parameters: str = "") -> Any:
    index = make_empty(rows, key)
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
    rows: NDArray[np.float32], tmp_path: Path, same_hits: Callable[..., None], key: str
) -> None:
    plain = reread(build(rows, key, KEYS[key]), tmp_path / "plain.index")
    skipping = Index(plain, EMPTY)
    gc.collect()  # the search parameters must keep alive what they point to
    for query in rows[1:60:3]:
        scores, ids = plain.search(query[None], COUNT)
        kept = np.flatnonzero((ids[0] >= 0) & ~np.isin(ids[0], EMPTY))[:10]
        found = skipping.search(query, 10)
        same_hits((found.scores[None], found.ids[None]), (scores[:, kept], ids[:, kept]))


def test_a_given_nprobe_bounds_what_is_searched_and_a_tuned_one_grows_with_the_hits(rows: NDArray[np.float32]) -> None:
    index = Index(build(rows, "IVF16,Flat", "nprobe=1"), EMPTY)
    assert len(index.search(rows[1], COUNT, Settings({"nprobe": 1})).ids) < COUNT / 2
    assert len(index.search(rows[1], COUNT).ids) == COUNT - len(EMPTY)
    assert index.settings_for(1)["nprobe"] == 1


def test_more_lists_for_more_hits_and_never_fewer_than_tuned(rows: NDArray[np.float32]) -> None:
    index = Index(build(rows, "IVF64,Flat", "nprobe=10"), EMPTY)
    assert [index.settings_for(k)["nprobe"] for k in (1, 10, 16)] == [10, 10, 10]
    assert index.settings_for(100)["nprobe"] == max(20, math.ceil(400 / index.row_count * 64))
    assert index.settings_for(10, Settings({"nprobe": 30}))["nprobe"] == 30


@pytest.mark.parametrize(("k", "factor"), [(1, 30), (5, 6), (10, 3), (16, 3), (17, 16), (1000, 16), (3276, 10.002)])
def test_one_hit_is_chosen_among_as_many_as_ten(rows: NDArray[np.float32], k: int, factor: float) -> None:
    index = Index(build(rows, "IVF16,SQ8,Refine(SQfp16)", "nprobe=2,k_factor_rf=3"), EMPTY)
    assert index.settings_for(k)["k_factor_rf"] == pytest.approx(factor, rel=1e-3)


def test_the_candidates_to_refine_grow_slower_than_the_hits(rows: NDArray[np.float32]) -> None:
    index = Index(build(rows, "IVF16,SQ8,Refine(SQfp16)", "nprobe=2,k_factor_rf=64"), EMPTY)
    assert index.settings_for(10)["k_factor_rf"] == 64
    assert index.settings_for(40)["k_factor_rf"] == pytest.approx(32)
    assert index.settings_for(1000)["k_factor_rf"] == 16
    assert index.settings_for(3276)["k_factor_rf"] == pytest.approx(10.002, rel=1e-3)
    assert index.settings_for(10**6)["k_factor_rf"] == 1.25


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


def test_of_equal_scores_the_earlier_row_comes_first() -> None:
    rows = np.repeat(np.eye(4, 8, dtype=np.float32), 5, axis=0)  # scores without rounding
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    found = Index(flat, np.empty(0, np.int64)).search(rows[7], 20)
    assert found.ids.tolist() == [*range(5, 10), *range(5), *range(10, 20)]
    parts = [
        SearchResult(np.array([9, 4]), np.array([1, 0.5], np.float32)),
        SearchResult(np.array([2]), np.array([1], np.float32)),
    ]
    assert merge(parts, 3).ids.tolist() == [2, 9, 4]


def test_an_index_whose_lists_end_early_gives_fewer_hits_and_no_padding(rows: NDArray[np.float32]) -> None:
    index = Index(build(rows, "IVF16,Flat", "nprobe=1"), np.empty(0, np.int64))
    result = index.search(rows[1], COUNT, Settings({"nprobe": 1}))
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
    with pytest.raises(StorageError, match=r"image\.index cannot be read as a faiss index"):
        open_index(IndexFolder(str(tmp_path)), "image")


MORE_KEYS = {
    **KEYS,
    "PQ8x4np": "",
    "PQ8x4fs": "",
    "RaBitQ": "",
    "RaBitQfs": "",
    "IDMap,Flat": "",
    "IVF16,PQ8x4fs": "nprobe=16",
    "IVF16,RaBitQ": "nprobe=3",
    "IVF16,RaBitQfs": "nprobe=16",
    "RR16,IVF16,SQ8,Refine(SQfp16)": "nprobe=3,k_factor_rf=4",
    "RR16,IVF16,SQ8,Refine(RR16,PQ16x4np)": "nprobe=3,k_factor_rf=4",
    "PQ8x4fs,RFlat": "k_factor_rf=5",
}


def build_any(rows: NDArray[np.float32], key: str) -> Any:
    index = make_empty(rows, key)
    index.add_with_ids(rows, np.arange(len(rows))) if key.startswith("IDMap") else index.add(rows)
    return index


@pytest.mark.parametrize("key", MORE_KEYS)
@pytest.mark.parametrize("k", [1, 50, COUNT])
def test_every_kind_gives_sorted_hits_each_once_and_none_empty(rows: NDArray[np.float32], key: str, k: int) -> None:
    index = Index(build_any(rows, key), EMPTY, parse_settings(MORE_KEYS[key]))
    for result in index.search_many(rows[1:30:3], k):
        assert len(set(result.ids.tolist())) == len(result.ids) <= k
        assert not np.isin(result.ids, EMPTY).any()
        assert (np.diff(result.scores) <= 0).all()
        assert len(result.ids) == k or k == COUNT
    if "nprobe=3" not in MORE_KEYS[key] and "HNSW" not in key:
        assert all(len(result.ids) == min(k, COUNT - len(EMPTY)) for result in index.search_many(rows[1:30:3], k))


def test_searches_at_once_with_other_settings_each_find_their_own(rows: NDArray[np.float32]) -> None:
    index = Index(build_any(rows, "RR16,IVF16,SQ8,Refine(SQfp16)"), EMPTY)
    tasks = [
        (row, Settings({"nprobe": nprobe, "k_factor_rf": factor}))
        for row in rows[1:60:3]
        for nprobe in (1, 4, 16)
        for factor in (1, 8)
    ]
    alone = [index.search(row, 30, settings).ids.tolist() for row, settings in tasks]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda task: index.search(task[0], 30, task[1]).ids.tolist(), tasks * 5))
    assert at_once == alone * 5
    assert len({str(hits) for hits in alone[:6]}) > 1


def test_parameters_are_made_once_unless_faiss_writes_into_them(rows: NDArray[np.float32]) -> None:
    tree = faiss.index_factory(rows.shape[1], "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    tree.train(rows)
    tree.add(rows)
    settings = Settings({"nprobe": 3})

    whole, skipping = Index(tree, np.empty(0, np.int64)), Index(tree, np.array([2]))

    assert whole.parameters(0, settings) is whole.parameters(0, Settings({"nprobe": 3}))
    assert whole.parameters(0, Settings({"nprobe": 4})).nprobe == 4
    assert skipping.parameters(0, settings) is not skipping.parameters(0, settings)


def test_the_settings_in_the_json_file_are_taken(rows: NDArray[np.float32], tmp_path: Path) -> None:
    faiss.write_index(build(rows, "IVF16,Flat"), str(tmp_path / "image.index"))
    folder = IndexFolder(str(tmp_path))
    assert open_index(folder, "image").settings_for(1)["nprobe"] < 16
    folder.write_json("image.json", {"index_param": "nprobe=16"})
    index = open_index(folder, "image")
    assert index.settings_for(1)["nprobe"] == 16
    assert len(index.search(rows[1], COUNT, Settings({"nprobe": 1})).ids) < COUNT / 2
    with pytest.raises(QueryError, match="no search setting k_factor_rf; it has max_codes, nprobe"):
        index.search(rows[1], 1, Settings({"k_factor_rf": 2}))


MAPPED = ("Flat", "HNSW16", "IVF16,SQ8", "RR8,IVF16,SQ8", "RR8,Flat", "IVF16,PQ8x4fs", "IVF16,SQ4,Refine(SQ8)")


@pytest.mark.parametrize("key", MAPPED)
def test_a_mapped_index_finds_the_same(rows: NDArray[np.float32], tmp_path: Path, key: str) -> None:
    faiss.write_index(build_any(rows, key), str(tmp_path / "image.index"))
    folder = IndexFolder(str(tmp_path))
    found = [open_index(folder, "image", memory_map=on).search(rows[1], 20) for on in (True, False)]
    assert found[0].ids.tolist() == found[1].ids.tolist()


@pytest.mark.parametrize("key", ["Flat", "HNSW16", "IVF16,Flat"])
def test_parts_are_searched_together(rows: NDArray[np.float32], tmp_path: Path, key: str) -> None:
    (tmp_path / "image.index").mkdir()
    whole = build_any(rows, key)
    places = [(0, 400), (400, 1100), (1100, COUNT)]
    for i, (start, stop) in enumerate(places):
        if "IVF" in key:
            part = faiss.clone_index(whole)
            part.reset()
            part.add_with_ids(rows[start:stop], np.arange(start, stop))
        else:
            part = build_any(rows[start:stop], key)
        faiss.write_index(part, str(tmp_path / "image.index" / f"{i}.index"))
    np.save(tmp_path / "image.empty.npy", EMPTY)
    folder = IndexFolder(str(tmp_path))
    index = open_index(folder, "image")
    assert index.row_count == COUNT
    settings = Settings({"nprobe": 16} if "IVF" in key else {"efSearch": 200} if "HNSW" in key else {})
    result = index.search(rows[1], 50, settings)
    best = np.argsort(-(rows @ rows[1]), kind="stable")[:50]
    assert len(set(result.ids.tolist()) & set(best.tolist())) >= (45 if "HNSW" in key else 50)
    np.testing.assert_allclose(result.scores, rows[result.ids] @ rows[1], atol=1e-5)
    shifted = [{"file": f"{i}.index", "first_row": start + 6} for i, (start, _) in enumerate(places)]
    folder.write_json("image.json", {"parts": shifted})
    if "IVF" not in key:
        assert open_index(folder, "image").search(rows[500], 1, settings).ids.tolist() == [506]


def test_lists_on_disk_are_found_wherever_the_folder_is_moved(
    rows: NDArray[np.float32], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained, path = build_any(rows, "IVF16,Flat"), tmp_path / "a" / "image.index"
    path.mkdir(parents=True)
    faiss.write_index(trained, str(tmp_path / "part.index"))
    trained.reset()
    merge_ondisk(trained, [str(tmp_path / "part.index")], str(path / "merged_index.ivfdata"))
    faiss.write_index(trained, str(path / "populated.index"))
    del trained
    capfd.readouterr()
    (tmp_path / "a").rename(tmp_path / "b")
    for memory_map in (True, False):
        index = open_index(IndexFolder(str(tmp_path / "b")), "image", memory_map=memory_map)
        assert index.search(rows[1], 5, Settings({"nprobe": 16})).ids[0] == 1
    assert capfd.readouterr() == ("", "")  # faiss would name each file that it opens
    (tmp_path / "b" / "image.index" / "merged_index.ivfdata").unlink()
    for memory_map in (True, False):
        with pytest.raises(StorageError, match=r"merged_index\.ivfdata is missing or damaged"):
            open_index(IndexFolder(str(tmp_path / "b")), "image", memory_map=memory_map)


@pytest.mark.parametrize("key", ["IVF16,SQ8", "RR8,IVF16,SQ8"])
def test_mapped_lists_stay_in_their_file_and_no_thread_fetches_them(
    rows: NDArray[np.float32], tmp_path: Path, key: str
) -> None:
    faiss.write_index(build_any(rows, key), str(tmp_path / "image.index"))
    for memory_map, kind in ((True, faiss.OnDiskInvertedLists), (False, faiss.ArrayInvertedLists)):
        index = open_index(IndexFolder(str(tmp_path)), "image", memory_map=memory_map).index
        lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
        assert isinstance(lists, kind)
        assert not memory_map or lists.prefetch_nthread == 0


def test_distances_become_similarities(rows: NDArray[np.float32]) -> None:
    index = faiss.IndexFlatL2(DIM)
    index.add(rows)
    result = Index(index, EMPTY).search(rows[1], 20)
    np.testing.assert_allclose(result.scores, rows[result.ids] @ rows[1], atol=1e-5)
    assert (np.diff(result.scores) <= 0).all()


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    rows: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faiss.write_index(build(rows, "Flat"), str(tmp_path / "image.index"))

    def refuse(folder: IndexFolder, name: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", folder.path(name))

    monkeypatch.setattr(IndexFolder, "open", refuse)
    with pytest.raises(StorageError, match=r"^cannot read .*image\.index: Permission denied") as caught:
        open_index(IndexFolder(str(tmp_path)), "image")
    assert "build" not in str(caught.value)


def test_another_metric_is_refused(tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexFlat(DIM, faiss.METRIC_L1), str(tmp_path / "image.index"))
    with pytest.raises(QueryError, match="another measure than inner product or L2"):
        open_index(IndexFolder(str(tmp_path)), "image")


def test_files_that_change_between_two_looks_are_looked_at_again(
    rows: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faiss.write_index(build(rows, "Flat"), str(tmp_path / "image.index"))
    told = iter([{"version": 1}, {"version": 2}, {"version": 2}, {"version": 2}])
    monkeypatch.setattr("clip_retrieval.search.index.read_manifest", lambda _: next(told))
    assert open_index(IndexFolder(str(tmp_path)), "image").row_count == COUNT
    assert next(told, None) is None
    versions = ({"version": number} for number in range(1000))
    monkeypatch.setattr("clip_retrieval.search.index.read_manifest", lambda _: next(versions))
    with pytest.raises(StorageError, match="keeps changing"):
        open_index(IndexFolder(str(tmp_path)), "image")


def test_one_query_is_searched_by_one_thread_and_many_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def note(*arguments: Any) -> Any:
        seen.append(faiss.omp_get_max_threads())
        return search_parameters(*arguments)

    monkeypatch.setattr("clip_retrieval.search.index.search_parameters", note)
    found = Index(build(np.eye(DIM, dtype=np.float32), "Flat"), np.empty(0, np.int64))
    with using_cores(3):
        found.search(np.ones(DIM, np.float32), 2)
        found.search_many(np.ones((2, DIM), np.float32), 2)
        assert faiss.omp_get_max_threads() == 3
    assert seen == [1, 3]
