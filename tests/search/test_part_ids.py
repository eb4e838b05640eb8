"""Files of a folder that were built apart have ids of their own from 0; those of one build have ids of the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search import part_ids
from clip_retrieval.search.held_rows import read_held, sample_held
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.search.settings import Settings
from clip_retrieval.search.within import Within, search_within

Rows = Callable[..., NDArray[np.float32]]

SIZES = (500, 300, 400)
KEYS = ["IVF8,Flat", "IVF8,PQ8x4np", "IVF8,PQ8x4fs", "IVF8_HNSW8,SQ8", "RR16,IVF8,SQ8", "IDMap,Flat", "IDMap,HNSW8"]


def write(folder: Path, rows: NDArray[np.float32], key: str, ids: list[NDArray[np.int64]]) -> Path:
    """Write a file for each of the ids, trained on its own rows alone."""
    (folder / "image.index").mkdir(parents=True)
    firsts = np.cumsum([0, *SIZES])
    for i, held in enumerate(ids):
        some = rows[firsts[i] : firsts[i + 1]]
        index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
        index.train(some)
        index.add_with_ids(some, held)
        faiss.write_index(index, str(folder / "image.index" / f"{i}.index"))
    return folder


def counted_anew() -> list[NDArray[np.int64]]:
    return [np.arange(size) for size in SIZES]


def going_on() -> list[NDArray[np.int64]]:
    firsts = np.cumsum([0, *SIZES])
    return [np.arange(first, first + size) for first, size in zip(firsts[:-1], SIZES, strict=True)]


def in_turn() -> list[NDArray[np.int64]]:
    """Rows that were dealt out: each file has other ids, but their ranges overlap."""
    order = np.random.default_rng(1).permutation(sum(SIZES))
    return np.split(order, np.cumsum(SIZES)[:-1])


def open_at(folder: Path, *, memory_map: bool = False) -> Index:
    return open_index(IndexFolder(str(folder)), "image", memory_map=memory_map)


def find_own(index: Index, rows: NDArray[np.float32]) -> NDArray[np.int64]:
    settings = Settings({"nprobe": 8} if "nprobe" in index.known_settings else {})
    return np.array([hits.ids[0] for hits in index.search_many(rows, 1, settings)])


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("make_ids", [counted_anew, going_on, in_turn])
def test_each_row_is_found_under_its_own_id(
    tmp_path: Path, unit_rows: Rows, key: str, make_ids: Callable[[], list[Any]], memory_map: bool
) -> None:
    rows, ids = unit_rows(sum(SIZES), 16), make_ids()
    index = open_at(write(tmp_path, rows, key, ids), memory_map=memory_map)
    wanted = np.arange(len(rows)) if make_ids is counted_anew else np.concatenate(ids)
    assert np.mean(find_own(index, rows) == wanted) > 0.8  # codes are not exact
    assert index.row_count == len(rows)
    few = np.array([3, 501, 820, 1150])
    (hits,) = search_within(index, rows[np.flatnonzero(wanted == 820)], 4, Within(few)).hits
    assert hits.ids[0] == 820
    assert sorted(hits.ids) == few.tolist()


@pytest.mark.parametrize("key", KEYS)
def test_each_row_is_read_by_its_own_id(tmp_path: Path, unit_rows: Rows, key: str) -> None:
    rows = unit_rows(sum(SIZES), 16)
    held = read_held(open_at(write(tmp_path, rows, key, counted_anew())), np.arange(len(rows)))
    assert np.mean((held * rows).sum(axis=1)) > 0.8


def test_the_json_file_says_where_rows_begin(tmp_path: Path, unit_rows: Rows) -> None:
    rows = unit_rows(sum(SIZES), 16)
    ids = [np.delete(some, [2, 4]) for some in counted_anew()]
    firsts = np.cumsum([0, *SIZES])
    (tmp_path / "image.index").mkdir()
    for i, held in enumerate(ids):
        index = faiss.index_factory(16, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add_with_ids(rows[firsts[i] + held], held)
        faiss.write_index(index, str(tmp_path / "image.index" / f"{i}.index"))
    with pytest.raises(StorageError, match=r"0\.index and 1\.index in .*image\.index both have a row 0; say in .*json"):
        open_at(tmp_path)
    parts = [{"file": f"{i}.index", "first_row": int(firsts[i])} for i in range(3)]
    (tmp_path / "image.json").write_text(json.dumps({"parts": parts}))
    there = np.concatenate([first + held for first, held in zip(firsts[:-1], ids, strict=True)])
    np.testing.assert_array_equal(find_own(open_at(tmp_path), rows[there]), there)
    parts[2]["first_row"] = 600
    (tmp_path / "image.json").write_text(json.dumps({"parts": parts}))
    with pytest.raises(StorageError, match=r"1\.index has ids from 0 to 299, but its rows in .* are 500 to 599"):
        open_at(tmp_path)


def test_ids_of_the_whole_are_told_from_ids_of_a_file_where_the_json_file_names_parts(
    tmp_path: Path, unit_rows: Rows
) -> None:
    rows = unit_rows(sum(SIZES), 16)
    write(tmp_path, rows, "IVF8,Flat", going_on())
    firsts = np.cumsum([0, *SIZES])
    parts = [{"file": f"{i}.index", "first_row": int(firsts[i]), "rows": SIZES[i]} for i in range(3)]
    (tmp_path / "image.json").write_text(json.dumps({"parts": parts}))
    np.testing.assert_array_equal(find_own(open_at(tmp_path), rows), np.arange(len(rows)))


def test_files_that_share_rows_are_refused(tmp_path: Path, unit_rows: Rows) -> None:
    rows, ids = unit_rows(sum(SIZES), 16), going_on()
    ids[2][7] = 505
    with pytest.raises(StorageError, match=r"1\.index and 2\.index in .* both have a row 505; say in"):
        open_at(write(tmp_path, rows, "IVF8,Flat", ids))


def test_positions_and_ids_go_together(tmp_path: Path, unit_rows: Rows) -> None:
    rows = unit_rows(sum(SIZES), 16)
    for name, middle in (("anew", counted_anew()), ("on", going_on())):
        folder = write(tmp_path / name, rows, "IVF8,Flat", middle)
        flat = faiss.IndexFlatIP(16)
        flat.add(rows[: SIZES[0]])
        faiss.write_index(flat, str(folder / "image.index" / "0.index"))
        np.testing.assert_array_equal(find_own(open_at(folder), rows), np.arange(len(rows)))


def test_of_many_rows_some_lists_tell(tmp_path: Path, unit_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(sum(SIZES), 16)
    monkeypatch.setattr(part_ids, "LISTS_READ", 6)
    monkeypatch.setattr(part_ids, "MOST_READ", 1000)
    for i, ids in enumerate((going_on(), in_turn())):
        index = open_at(write(tmp_path / str(i), rows, "IVF8,Flat", ids))
        np.testing.assert_array_equal(find_own(index, rows), np.concatenate(ids))
    with pytest.raises(StorageError, match=r"both have a row [\d,]+, and there are more than 1,000 rows; say in"):
        open_at(write(tmp_path / "anew", rows, "IVF8,Flat", counted_anew()))


@pytest.mark.parametrize(
    ("held", "shared"),
    [
        ([[5, 5], [1], [7, 1]], (1, 2, 1)),
        ([[-3, 9], [9, 1 << 60], [1 << 60]], (0, 1, 9)),
        ([[5, 5], [1], [7]], None),  # twice in one file
        ([[], [3], []], None),
        ([[], []], None),
    ],
)
def test_the_first_row_that_two_files_have(held: list[list[int]], shared: tuple[int, int, int] | None) -> None:
    assert part_ids.find_shared([np.array(ids, np.int64) for ids in held]) == shared


@pytest.mark.parametrize("is_described", [False, True])
def test_a_small_file_before_a_large_one_whose_read_lists_lack_the_first_ids(
    tmp_path: Path, unit_rows: Rows, monkeypatch: pytest.MonkeyPatch, is_described: bool
) -> None:
    rows = unit_rows(402, 16)
    monkeypatch.setattr(part_ids, "LISTS_READ", 1)
    quantizer = faiss.IndexFlatIP(16)
    quantizer.add(rows[300:308])
    (tmp_path / "image.index").mkdir()
    for name, first, stop in (("0", 0, 2), ("1", 2, 402)):
        index = faiss.IndexIVFFlat(quantizer, 16, 8, faiss.METRIC_INNER_PRODUCT)
        index.add(rows[first:stop])
        faiss.write_index(index, str(tmp_path / "image.index" / f"{name}.index"))
    low = min(ids.min() for ids in part_ids.pieces_of(index, 1))
    assert low >= 2, "the list that is read should not hold the first ids"
    if is_described:
        parts = [{"file": "0.index", "first_row": 0}, {"file": "1.index", "first_row": 2}]
        (tmp_path / "image.json").write_text(json.dumps({"parts": parts}))
    np.testing.assert_array_equal(find_own(open_at(tmp_path), rows), np.arange(len(rows)))


@pytest.mark.parametrize("key", ["IVF8,Flat", "IDMap,Flat"])
def test_a_file_may_hold_nothing(tmp_path: Path, unit_rows: Rows, key: str) -> None:
    rows = unit_rows(sum(SIZES), 16)
    folder = write(tmp_path, rows, key, counted_anew())
    empty = faiss.read_index(str(folder / "image.index" / "0.index"))
    empty.reset()
    faiss.write_index(empty, str(folder / "image.index" / "00.index"))
    np.testing.assert_array_equal(find_own(open_at(folder), rows), np.arange(len(rows)))


def test_of_long_lists_the_ends_tell(tmp_path: Path, unit_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_ids, "ENDS_READ", 5)
    folder = write(tmp_path, unit_rows(sum(SIZES), 16), "IVF8,Flat", going_on())
    index = faiss.read_index(str(folder / "image.index" / "1.index"))
    some = part_ids.read_some(index)
    assert len(some) <= 8 * 10
    assert (some.min(), some.max()) == (500, 799)


@pytest.mark.parametrize("key", ["Flat", "IVF8,Flat"])
def test_places_in_the_json_file_under_which_rows_meet_are_refused(tmp_path: Path, unit_rows: Rows, key: str) -> None:
    rows = unit_rows(sum(SIZES), 16)
    (tmp_path / "image.index").mkdir()
    for i, (some, size) in enumerate(zip(np.split(rows, np.cumsum(SIZES)[:-1]), SIZES, strict=True)):
        index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
        index.train(some)
        index.add(some)
        assert index.ntotal == size
        faiss.write_index(index, str(tmp_path / "image.index" / f"{i}.index"))
    for firsts, said in (
        ((0, 400, 800), "both would have a row 400" if key == "Flat" else "0.index has ids from 0 to 499"),
        ((0, 500, 500), "those of 2.index at 500: then both would have a row 500"),
        ((-1, 500, 800), "begin at -1"),
    ):
        parts = [{"file": f"{i}.index", "first_row": first, "rows": 500} for i, first in enumerate(firsts)]
        (tmp_path / "image.json").write_text(json.dumps({"parts": parts}))
        with pytest.raises(StorageError, match=said):
            open_at(tmp_path)
    for firsts in ((0, 500, 800), (700, 0, 300), (0, 600, 1000)):
        parts = [{"file": f"{i}.index", "first_row": first} for i, first in enumerate(firsts)]
        (tmp_path / "image.json").write_text(json.dumps({"parts": parts}))
        found = find_own(open_at(tmp_path), rows)
        np.testing.assert_array_equal(
            found, np.concatenate([f + np.arange(s) for f, s in zip(firsts, SIZES, strict=True)])
        )


def test_names_that_are_not_in_the_order_of_their_numbers_are_told(
    tmp_path: Path, unit_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, unit_rows(sum(SIZES), 16), "IDMap,Flat", counted_anew())
    open_at(folder)
    assert not caplog.text
    parts = folder / "image.index"
    (parts / "2.index").rename(parts / "10.index")
    open_at(folder)
    assert "order of their names, 0.index, 1.index, 10.index" not in caplog.text  # which is that of their numbers
    (parts / "1.index").rename(parts / "9.index")
    open_at(folder)
    assert "order of their names, 0.index, 10.index, 9.index; for the order of their numbers, write" in caplog.text
    assert "image.json where the rows of each file begin" in caplog.text
    caplog.clear()
    said = [{"file": name, "first_row": first} for name, first in (("0.index", 0), ("9.index", 500), ("10.index", 800))]
    (folder / "image.json").write_text(json.dumps({"parts": said}))
    open_at(folder)
    assert not caplog.text


def test_the_order_of_names_does_not_matter_to_ids_of_the_whole(
    tmp_path: Path, unit_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, unit_rows(sum(SIZES), 16), "IDMap,Flat", going_on())
    (folder / "image.index" / "2.index").rename(folder / "image.index" / "10.index")
    (folder / "image.index" / "1.index").rename(folder / "image.index" / "9.index")
    open_at(folder)
    assert not caplog.text


def spoil(index: Any, row: int) -> None:
    """Make a row NaN, as a file may hold it, or of lists leave it out, as faiss does: adding one may crash it."""
    if isinstance(index, faiss.IndexIVFFlat):
        index.remove_ids(np.array([row]))
        index.ntotal += 1
        return
    flat = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d)[row] = np.nan


@pytest.mark.parametrize("keys", [("IVF8,Flat", "IVF16,Flat"), ("Flat", "Flat"), ("IVF8,Flat", "IDMap,Flat")])
@pytest.mark.parametrize("memory_map", [False, True])
def test_files_built_apart_with_rows_of_nan_and_zero_are_searched_right(
    tmp_path: Path, unit_rows: Rows, keys: tuple[str, str], memory_map: bool
) -> None:
    """Each file is searched with its own centroids; a row of NaN is no hit, no neighbor and no background."""
    rows, odd = unit_rows(800, 16), [5, 505]
    rows[[10, 510]] = 0
    (tmp_path / "image.index").mkdir()
    for i, (key, some) in enumerate(zip(keys, (rows[:500], rows[500:]), strict=True)):
        index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
        index.train(some)
        if key == "Flat":
            index.add(some)
        else:
            index.add_with_ids(some, np.arange(len(some)))
        spoil(index, 5)
        faiss.write_index(index, str(tmp_path / "image.index" / f"{i}.index"))
    opened = open_at(tmp_path, memory_map=memory_map)
    for row in range(20, 800, 60):
        assert opened.search(rows[row], 1, Settings({"nprobe": 16}) if "IVF" in keys[0] else None).ids.tolist() == [row]
        every = opened.search(rows[row], 800, every_row=True)
        assert sorted(every.ids.tolist()) == sorted(set(range(800)) - set(odd))
        assert np.isfinite(every.scores).all()
    held = read_held(opened, np.array([4, *odd, 10]))
    assert held.any(axis=1).tolist() == [True, False, False, False]
    assert np.isfinite(sample_held(opened, 800)).all()
