"""What ids rows get in a merged index: those of a search of the same files, else a sentence; gaps are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.index.building.merged_ids import find_gaps
from clip_retrieval.index.combine import combine_folder, run_combine
from clip_retrieval.index.config import CombineConfig
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.search.settings import Settings

Rows = Callable[..., NDArray[np.float32]]
COUNT, DIM = 300, 16
COUNTED = np.arange(COUNT)


def write(folder: Path, rows: NDArray[np.float32], parts: Sequence[NDArray[np.int64]], key: str = "IVF8,Flat") -> Path:
    """Write a file for each of the ids; all are trained on the same rows, and hold them one after the other."""
    (folder / "image.index").mkdir(parents=True)
    trained = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    trained.train(rows)
    first = 0
    for i, ids in enumerate(parts):
        index = faiss.clone_index(trained)
        some = rows[first : first + len(ids)]
        if key.startswith("IVF"):
            index.add_with_ids(some, ids)
        else:
            index.add(some)
        faiss.write_index(index, str(folder / "image.index" / f"{i}.index"))
        first += len(ids)
    return folder


def combine(folder: Path, out: Path, *, on_disk: bool = False) -> Index:
    run_combine(CombineConfig(input_folder=str(folder), output_folder=str(out), on_disk=on_disk))
    return open_at(out)


def open_at(folder: Path) -> Index:
    return open_index(IndexFolder(str(folder)), "image")


def find_own(index: Index, rows: NDArray[np.float32]) -> list[int]:
    settings = Settings({name: 8 for name in ("nprobe",) if name in index.known_settings})
    return [int(hits.ids[0]) for hits in index.search_many(rows, 1, settings)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_ids_without_a_row_are_told(
    tmp_path: Path, unit_rows: Rows, on_disk: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(3 * COUNT, DIM)
    ids = [COUNTED, np.delete(COUNTED, [7, 8, 100]) + 2 * COUNT]
    folder = write(tmp_path / "in", rows, ids)
    index = combine(folder, tmp_path / "out", on_disk=on_disk)
    assert "no row for 303 of the ids 0 to 899: 300 to 599, 607 to 608, 700" in caplog.text
    assert find_own(index, rows[: 2 * COUNT - 3]) == np.concatenate(ids).tolist()
    caplog.clear()
    combine_folder(str(folder / "image.index"), str(tmp_path / "again"))
    assert "no row for 303 of the ids" in caplog.text
    caplog.clear()
    combine(write(tmp_path / "whole", rows, [COUNTED, COUNTED + COUNT]), tmp_path / "out2", on_disk=on_disk)
    assert "no row" not in caplog.text


def test_rows_that_were_removed_from_a_file_with_ids_of_its_own_are_refused_as_in_a_search(
    tmp_path: Path, unit_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(3 * COUNT, DIM)
    folder = write(tmp_path / "in", rows, [COUNTED, np.delete(COUNTED, range(100, 200)), COUNTED])
    with pytest.raises(ClipRetrievalError, match=r"say in .*image\.json where"):
        open_at(folder)
    with pytest.raises(
        ClipRetrievalError, match=r"1\.index has 200 rows under the ids 0 to 299.*\(in .*in/image\.json"
    ):
        combine(folder, tmp_path / "out")
    with pytest.raises(ClipRetrievalError, match=r"put the files into a folder image\.index, and say"):
        combine_folder(str(folder / "image.index"), str(tmp_path / "out"))
    parts = [{"file": f"{i}.index", "first_row": i * COUNT} for i in range(3)]
    (folder / "image.json").write_text(json.dumps({"parts": parts}))
    assert find_own(combine(folder, tmp_path / "out"), rows[:800]) == find_own(open_at(folder), rows[:800])
    assert "no row for 100 of the ids 0 to 899: 400 to 499" in caplog.text


def test_rows_of_an_index_folder_are_those_of_its_manifest(
    tmp_path: Path, unit_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(2 * COUNT, DIM)
    written = write(tmp_path / "written", rows, [COUNTED[:-2], COUNTED])
    for i in range(2):
        folder = tmp_path / "in" / str(i)
        folder.mkdir(parents=True)
        (written / "image.index" / f"{i}.index").rename(folder / "image.index")
        (folder / "manifest.json").write_text(json.dumps({"indices": {"image": {"rows": COUNT}}}))
    np.save(tmp_path / "in" / "0" / "image.empty.npy", COUNTED[-2:])
    index = combine(tmp_path / "in", tmp_path / "out")
    assert index.row_count == 2 * COUNT
    assert find_own(index, rows[COUNT - 2 : COUNT]) == [COUNT, COUNT + 1]
    assert "no row" not in caplog.text


def test_ids_that_cannot_be_rows_are_not_merged(tmp_path: Path, unit_rows: Rows) -> None:
    rows, twice = unit_rows(2 * COUNT, DIM), COUNTED.copy()
    twice[-1] = 4
    for i, (ids, said) in enumerate(
        ((COUNTED - 5, "negative ids, from -5 on"), (twice, "300 rows under the ids 0 to 298"))
    ):
        with pytest.raises(ClipRetrievalError, match=said):
            combine(write(tmp_path / str(i), rows, [ids]), tmp_path / "out")


def test_files_without_ids_are_not_merged_where_their_rows_would_move(tmp_path: Path, unit_rows: Rows) -> None:
    folder = write(tmp_path / "in", unit_rows(2 * COUNT, DIM), [COUNTED, COUNTED], "Flat")
    for second, said in ((400, "begin at 0, 400; a merged index of this kind has them at 0, 300"), (299, "a row 299")):
        parts = [{"file": "0.index", "first_row": 0}, {"file": "1.index", "first_row": second}]
        (folder / "image.json").write_text(json.dumps({"parts": parts}))
        with pytest.raises(ClipRetrievalError, match=said):
            combine(folder, tmp_path / "out")


@pytest.mark.parametrize("key", ["Flat", "IVF8,Flat"])
def test_names_that_are_not_in_the_order_of_their_numbers_are_told(
    tmp_path: Path, unit_rows: Rows, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "in", unit_rows(11 * 20, DIM), [np.arange(20)] * 11, key)
    combine(folder, tmp_path / "out")
    assert "order of their names, image.index/0.index, image.index/1.index, image.index/10.index, " in caplog.text
    caplog.clear()
    (folder / "image.index" / "10.index").rename(folder / "image.index" / "9.5.index")
    combine(folder, tmp_path / "out2")
    assert "order of their names" not in caplog.text


def test_gaps() -> None:
    assert find_gaps(np.array([1, 0, 0, 1, 0], np.bool_)) == [(1, 2), (4, 4)]
    assert find_gaps(np.ones(3, np.bool_)) == []
