"""Ids that cannot be rows are refused when an index is opened; those that can be, are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import ClipRetrievalError, StorageError
from clip_retrieval.index.info import describe_folder
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search import row_ids
from clip_retrieval.search.index import open_index

Rows = Callable[..., NDArray[np.float32]]
COUNT = 600
COUNTED = np.arange(COUNT)


def changed(place: int, value: int) -> NDArray[np.int64]:
    ids = COUNTED.copy()
    ids[place] = value
    return ids


def write(folder: Path, rows: NDArray[np.float32], ids: NDArray[np.int64], key: str = "IDMap,Flat") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add_with_ids(rows, ids)
    faiss.write_index(index, str(folder / "image.index"))
    return folder


def add_metadata(folder: Path, rows: int) -> None:
    (folder / "metadata").mkdir()
    pq.write_table(pa.table({"caption": ["a"] * rows}), folder / "metadata" / "metadata_0.parquet")


def open_at(folder: Path, **options: Any) -> Any:
    return open_index(IndexFolder(str(folder)), "image", **options)


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("key", ["IDMap,Flat", "IVF8,Flat", "PCA8,IVF8,SQ8", "IVF8,PQ8x4fs"])
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (COUNTED - 100, r"image\.index has negative ids, from -100 on; ids are row numbers"),
        (changed(300, 7), r"image\.index has the id 7 twice"),
        (
            changed(300, 1 << 62),
            r"image\.index has ids up to 4,611,686,018,427,387,904, and there are 600 rows of",
        ),
        (COUNTED * 2, r"image\.index has ids up to 1,198, and there are 600 rows of metadata"),
        (COUNTED + (1 << 40), r"image\.index has ids up to [\d,]+, and there are 600 rows of metadata"),
    ],
)
def test_ids_that_cannot_be_rows_are_refused(
    tmp_path: Path, unit_rows: Rows, ids: NDArray[np.int64], said: str, key: str, memory_map: bool
) -> None:
    folder = write(tmp_path, unit_rows(COUNT, 16), ids, key)
    add_metadata(folder, COUNT)
    with pytest.raises(StorageError, match=said):
        open_at(folder, memory_map=memory_map)
    with pytest.raises(ClipRetrievalError, match=said):
        describe_folder(str(folder))


def test_ids_beyond_the_rows_of_the_manifest_are_refused(tmp_path: Path, unit_rows: Rows) -> None:
    folder = write(tmp_path, unit_rows(COUNT, 16), COUNTED + 1)
    (folder / "manifest.json").write_text('{"indices": {"image": {"rows": 601}}}')
    assert open_at(folder).row_count == COUNT + 1
    (folder / "manifest.json").write_text('{"indices": {"image": {"rows": 600}}}')
    with pytest.raises(StorageError, match="has ids up to 600, and there are 600 rows in the manifest"):
        open_at(folder)


@pytest.mark.parametrize(
    ("ids", "is_told"),
    [
        (COUNTED + (1 << 40), True),
        (COUNTED[::-1].copy(), False),
        (np.random.default_rng(0).permutation(COUNT), False),
        (COUNTED + 100, False),  # of an index whose first rows were removed
    ],
)
def test_where_nothing_says_how_many_rows_there_are_ids_far_beyond_are_told(
    tmp_path: Path, unit_rows: Rows, ids: NDArray[np.int64], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(COUNT, 16)
    index = open_at(write(tmp_path, rows, ids))
    assert [int(index.search(row, 1).ids[0]) for row in rows[:20]] == ids[:20].tolist()
    assert ("these are not row numbers" in caplog.text) == is_told


def test_a_later_file_is_named(tmp_path: Path, unit_rows: Rows) -> None:
    rows = unit_rows(COUNT, 16)
    parts = tmp_path / "image.index"
    parts.mkdir()
    for i, ids in enumerate((COUNTED, COUNTED + COUNT, changed(5, 9) + 2 * COUNT)):
        write(tmp_path / str(i), rows, ids, "IVF8,Flat").joinpath("image.index").rename(parts / f"{i}.index")
    with pytest.raises(StorageError, match=r"image\.index/2\.index has the id 1,209 twice"):
        open_at(tmp_path)


def test_all_ids_of_long_mapped_lists_are_read(tmp_path: Path) -> None:
    ids = np.arange(70_000)
    ids[35_000] = 3
    folder = write(tmp_path, np.ones((len(ids), 4), np.float32), ids, "IVF1,SQ8")
    with pytest.raises(StorageError, match="has the id 3 twice"):
        open_at(folder, memory_map=True)


@pytest.mark.parametrize("described", [False, True])
def test_a_row_in_the_middle_of_lists_of_two_files_is_refused(tmp_path: Path, unit_rows: Rows, described: bool) -> None:
    rows = unit_rows(COUNT, 16)
    parts = tmp_path / "image.index"
    parts.mkdir()
    for i, ids in enumerate((changed(300, COUNT + 200), COUNTED + COUNT)):
        write(tmp_path / str(i), rows, ids, "IVF1,Flat").joinpath("image.index").rename(parts / f"{i}.index")
    if described:
        places = [{"file": "0.index", "first_row": 0}, {"file": "1.index", "first_row": COUNT}]
        (tmp_path / "image.json").write_text(json.dumps({"parts": places}))
    with pytest.raises(StorageError, match=r"0\.index and .*1\.index both have a row 800; ids are row numbers"):
        open_at(tmp_path)


def test_of_more_rows_than_are_read_the_ends_of_lists_tell(
    tmp_path: Path, unit_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_ids, "MOST_READ", 100)
    rows = unit_rows(COUNT, 16)
    assert open_at(write(tmp_path / "1", rows, changed(300, 7), "IVF1,Flat")).row_count == COUNT  # not looked for
    with pytest.raises(StorageError, match="has negative ids, from -1 on"):
        open_at(write(tmp_path / "2", rows, COUNTED - 1, "IVF8,Flat"))


@pytest.mark.parametrize(
    ("ids", "twice"),
    [([], None), ([4], None), ([1, 2, 9], None), ([9, 1, 2], None), ([2, 9, 2], 2), ([1 << 60, 3, 1 << 60], 1 << 60)],
)
def test_the_first_id_that_is_there_twice(ids: list[int], twice: int | None) -> None:
    assert row_ids.find_twice(np.array(ids, np.int64), max(ids, default=-1)) == twice
