"""Rows of metadata by id, over files whose columns and types differ, equal a plain concatenation."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_retrieval.errors import StorageError
from clip_retrieval.metadata import Metadata, count_rows, open_metadata
from clip_retrieval.storage import Folder

TYPES: dict[pa.DataType, st.SearchStrategy[object]] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.string(): st.text(max_size=5),
    pa.bool_(): st.booleans(),
    pa.list_(pa.string()): st.lists(st.text(max_size=2), max_size=2),
    pa.null(): st.none(),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 6))
    columns = {"row": pa.array(range(count), pa.int64())}
    for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
        kind = draw(st.sampled_from(list(TYPES)))
        cells = draw(st.lists(st.none() | TYPES[kind], min_size=count, max_size=count))
        columns[name] = pa.array(cells, kind)
    return pa.table(columns)


def write(folder: Path, parts: Sequence[pa.Table], group_size: int = 3) -> Folder:
    (folder / "metadata").mkdir()
    for i, part in enumerate(parts):
        pq.write_table(part, folder / "metadata" / f"metadata_{i}.parquet", row_group_size=group_size)
    return Folder(str(folder))


def same(found: object, expected: object) -> bool:
    """Tell whether a value survived: as it is, as the widest number, or as text where its column has several types."""
    if expected is None or found is None:
        return expected is found
    if isinstance(found, str) and not isinstance(expected, str):
        return found == str(expected) or eval_json(found) == expected
    return found == expected


def eval_json(text: str) -> object:
    import json  # noqa: PLC0415

    return json.loads(text)


@settings(max_examples=150, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=4), st.data())
def test_rows_in_any_order_equal_a_plain_concatenation(parts: list[pa.Table], data: st.DataObject) -> None:
    plain = [row for part in parts for row in part.to_pylist()]
    ids = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=10)) if plain else []
    with tempfile.TemporaryDirectory() as folder:
        found = Metadata(write(Path(folder), parts), [f"metadata_{i}.parquet" for i in range(len(parts))])
        rows = found.rows(np.array(ids, np.int64)).to_pylist()
    assert len(rows) == len(ids)
    for row, expected in zip(rows, [plain[i] for i in ids], strict=True):
        assert all(same(row.get(name), expected.get(name)) for name in {*row, *expected}), (row, expected)


def test_rows_of_like_files_equal_pandas(tmp_path: Path) -> None:
    frames = [pd.DataFrame({"a": np.arange(n) + 10 * n, "b": [f"{n}-{i}" for i in range(n)]}) for n in (3, 0, 5, 1)]
    folder = write(tmp_path, [pa.Table.from_pandas(frame) for frame in frames], group_size=2)
    ids = np.random.default_rng(0).permutation(9)
    found = open_metadata(folder)
    assert found is not None
    expected = pd.concat(frames, ignore_index=True).iloc[ids].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.rows(ids).to_pandas(), expected, check_dtype=False)


@pytest.mark.parametrize("ids", [[3], [-1], [0, 1, 99]])
def test_an_id_outside_of_the_metadata_is_an_error(tmp_path: Path, ids: list[int]) -> None:
    metadata = open_metadata(write(tmp_path, [pa.table({"a": [1, 2, 3]})]))
    assert metadata is not None
    with pytest.raises(StorageError, match="the metadata has 3 rows"):
        metadata.rows(np.array(ids, np.int64))


def test_a_folder_without_metadata_has_none(tmp_path: Path) -> None:
    assert open_metadata(Folder(str(tmp_path))) is None
    assert count_rows(Folder(str(tmp_path))) is None


def test_rows_are_counted_without_reading_them(tmp_path: Path) -> None:
    assert count_rows(write(tmp_path, [pa.table({"a": [1, 2, 3]}), pa.table({"b": ["x"]})])) == 4
