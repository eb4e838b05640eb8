"""Rows of metadata by id, over files whose columns and types differ, equal a plain concatenation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_retrieval import checksums
from clip_retrieval.checksums import sum_files
from clip_retrieval.errors import StorageError
from clip_retrieval.layout import MANIFEST, METADATA_ARROW
from clip_retrieval.metadata import arrays, arrow, cells, count_rows, make_array, open_metadata
from clip_retrieval.metadata import write as write_module
from clip_retrieval.metadata.arrays import DamageError
from clip_retrieval.metadata.arrow import SOURCES, ArrowMetadata
from clip_retrieval.metadata.direct import DirectColumn, open_direct
from clip_retrieval.metadata.parquet import Footer, ParquetFiles, ParquetMetadata, columns_there
from clip_retrieval.metadata.schema import Columns
from clip_retrieval.metadata.write import write_arrow, write_metadata_arrow
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
        values = draw(st.lists(st.none() | TYPES[kind], min_size=count, max_size=count))
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def write(folder: Path, parts: Sequence[pa.Table], group_size: int = 3) -> Folder:
    (folder / "metadata").mkdir()
    for i, part in enumerate(parts):
        pq.write_table(part, folder / "metadata" / f"metadata_{i}.parquet", row_group_size=group_size)
    return Folder(str(folder))


def same(found: object, expected: object) -> bool:
    """Say whether a value survived: unchanged, as the widest number, or as text if its column has several types."""
    if expected is None or found is None:
        return expected is found
    if isinstance(found, str) and not isinstance(expected, str):
        return found == str(expected) or eval_json(found) == expected
    return found == expected


def eval_json(text: str) -> object:
    import json  # noqa: PLC0415

    return json.loads(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=4), st.data())
def test_rows_in_any_order_equal_a_plain_concatenation(parts: list[pa.Table], data: st.DataObject) -> None:
    plain = [row for part in parts for row in part.to_pylist()]
    ids = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=10)) if plain else []
    with tempfile.TemporaryDirectory() as folder:
        found = ParquetMetadata(ParquetFiles(write(Path(folder), parts)))
        rows = found.rows(np.array(ids, np.int64)).to_pylist()
    assert len(rows) == len(ids)
    for row, expected in zip(rows, [plain[i] for i in ids], strict=True):
        assert all(same(row.get(name), expected.get(name)) for name in {*row, *expected}), (row, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=4), st.data())
def test_rows_of_metadata_arrow_equal_those_of_the_parquet_files(parts: list[pa.Table], data: st.DataObject) -> None:
    count = sum(map(len, parts))
    ids = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=10)) if count else [], np.int64)
    columns = data.draw(st.none() | st.lists(st.sampled_from(["row", "a", "b", "c", "nowhere"])))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_module, "BATCH_ROWS", 4)
        folder = write(Path(name), parts)
        write_metadata_arrow(folder, folder)
        found, expected = open_metadata(folder), ParquetMetadata(ParquetFiles(folder))
        assert isinstance(found, ArrowMetadata)
        assert found.row_count == expected.row_count == count
        assert found.rows(ids, columns).combine_chunks().equals(expected.rows(ids, columns).combine_chunks())


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


def types_of(folder: Folder) -> dict[str, str]:
    return {field.name: str(field.type) for field in ParquetFiles(folder).schema}


@pytest.mark.parametrize(
    ("first", "second", "kind", "values"),
    [
        ([1], [0.5], "double", [1.0, 0.5]),
        ([2**53 + 1], [0.5], "large_string", [str(2**53 + 1), "0.5"]),
        ([True], [3], "large_string", ["true", "3"]),
        ([["a"]], ["b"], "large_string", ['["a"]', "b"]),
        ([None], [7], "int64", [None, 7]),
    ],
)
def test_a_column_of_several_types_loses_no_value(
    tmp_path: Path, first: list[object], second: list[object], kind: str, values: list[object]
) -> None:
    folder = write(tmp_path, [pa.table({"x": first}), pa.table({"x": second})])
    assert types_of(folder) == {"x": kind}
    write_metadata_arrow(folder, folder)
    metadata = open_metadata(folder)
    assert metadata is not None
    assert metadata.rows(np.array([0, 1]))["x"].to_pylist() == values


def test_one_clashing_column_leaves_the_numbers_beside_it_alone(tmp_path: Path) -> None:
    parts = [pa.table({"x": [1], "n": pa.array([1], pa.int32())}), pa.table({"x": ["a"], "n": [2]})]
    assert types_of(write(tmp_path, parts)) == {"x": "large_string", "n": "int64"}


def test_categories_become_their_values(tmp_path: Path) -> None:
    labels = [["a", "b"], ["c", None]]
    folder = write(tmp_path, [pa.table({"x": pa.array(label).dictionary_encode()}) for label in labels])
    write_metadata_arrow(folder, folder)
    metadata = open_metadata(folder)
    assert metadata is not None
    assert metadata.rows(np.array([3, 0, 2, 1]))["x"].to_pylist() == [None, "a", "c", "b"]


def test_two_columns_of_one_name_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(StorageError, match=r"metadata_0\.parquet has two columns called x"):
        ParquetFiles(write(tmp_path, [table]))


def make_folder(path: Path) -> Folder:
    folder = write(path, [pa.table({"a": [1, 2, 3]}), pa.table({"a": [4]})])
    write_metadata_arrow(folder, folder)
    assert isinstance(open_metadata(folder), ArrowMetadata)
    return folder


def rows_of(folder: Folder) -> list[object]:
    metadata = open_metadata(folder)
    assert metadata is not None
    values: list[object] = metadata.rows(np.arange(metadata.row_count))["a"].to_pylist()
    return values


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_half_a_metadata_arrow_is_passed_over(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path)
    path = tmp_path / METADATA_ARROW
    path.write_bytes(path.read_bytes()[:size])
    assert rows_of(folder) == [1, 2, 3, 4]
    assert "is not a whole Arrow file" in caplog.text


def nested_table(count: int) -> pa.Table:
    """Return a table with offsets of every kind that files of ours have, and nulls among them."""
    texts = [f"caption {row} é" if row % 7 else None for row in range(count)]
    columns: dict[str, Any] = {"text": texts, "bytes": [bytes([row % 256]) * 3 for row in range(count)]}
    columns["list"] = [[str(item) for item in range(row % 4)] for row in range(count)]
    columns["struct"] = [{"name": "q" * (row % 9), "many": [row]} for row in range(count)]
    return pa.table(columns)


def spoil_offsets(path: Path, column: str, row: int, value: int) -> None:
    """Overwrite the offset at which a row of a mapped column begins, in the file itself."""
    data = path.read_bytes()
    values = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0).column(column)
    if column == "struct":
        values = values.field("many")
    offsets = values.buffers()[1].to_pybytes()
    width = 4 if pa.types.is_list(values.type) else 8
    assert data.count(offsets[: width * 20]) == 1
    start = data.index(offsets[: width * 20]) + width * row
    path.write_bytes(data[:start] + value.to_bytes(width, "little", signed=True) + data[start + width :])


@pytest.fixture(params=[0, arrow.MOST_CELLS], ids=["through the map", "from the file"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "MOST_CELLS", request.param)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("value", [-1, 1 << 30, 0])
@pytest.mark.parametrize("column", ["text", "bytes", "list", "struct"])
def test_damaged_offsets_in_metadata_arrow_are_seen_and_the_parquet_files_read(
    tmp_path: Path, column: str, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = nested_table(100)
    folder = write(tmp_path, [expected], group_size=50)
    write_metadata_arrow(folder, folder)
    spoil_offsets(tmp_path / METADATA_ARROW, column, 30, value)
    metadata = open_metadata(folder)
    assert isinstance(metadata, ArrowMetadata)
    assert metadata.rows(np.array([5, 1])).to_pylist() == expected.take([5, 1]).to_pylist()
    assert not caplog.records
    ids = np.array([29, 30, 29, 2])
    for _ in range(2):
        assert metadata.rows(ids).to_pylist() == expected.take(ids).to_pylist()
    assert "is damaged" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", [-1, 1 << 30])
@pytest.mark.parametrize("column", ["text", "bytes", "list", "struct"])
def test_damaged_offsets_are_seen_before_a_whole_column_is_read(tmp_path: Path, column: str, value: int) -> None:
    expected = nested_table(100)
    folder = write(tmp_path, [expected], group_size=50)
    write_metadata_arrow(folder, folder)
    spoil_offsets(tmp_path / METADATA_ARROW, column, 30, value)
    metadata = open_metadata(folder)
    assert isinstance(metadata, ArrowMetadata)
    other = "bytes" if column == "text" else "text"
    assert metadata.columns([other])[other].to_pylist() == expected[other].to_pylist()
    assert metadata.instead is None
    assert metadata.columns([column])[column].to_pylist() == expected[column].to_pylist()
    assert metadata.instead is not None


def damage_value(folder: Folder, path: Path) -> None:
    """Note the checksum of metadata.arrow in a manifest, and change one value, which Arrow cannot see."""
    write_metadata_arrow(folder, folder)
    folder.write_json(MANIFEST, {"sums": sum_files(folder, METADATA_ARROW)})
    path.write_bytes(path.read_bytes().replace(b"caption 40", b"caption 41"))


def test_a_damaged_value_is_found_by_the_checksum_in_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, [nested_table(100)])
    damage_value(folder, tmp_path / METADATA_ARROW)
    metadata = open_metadata(folder)
    assert metadata is not None
    assert metadata.rows(np.array([40]), ["text"]).to_pylist() == [{"text": "caption 40 é"}]
    assert "metadata.arrow is damaged" in caplog.text
    folder.remove("metadata")
    with pytest.raises(StorageError, match=r"metadata\.arrow is damaged: .*; build the index again"):
        open_metadata(folder)


def test_a_large_metadata_arrow_is_compared_by_its_size_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "CHECKED_BYTES", 100)
    folder = write(tmp_path, [nested_table(100)])
    damage_value(folder, tmp_path / METADATA_ARROW)
    assert isinstance(open_metadata(folder), ArrowMetadata)
    (tmp_path / METADATA_ARROW).write_bytes((tmp_path / METADATA_ARROW).read_bytes() + b"more")
    assert isinstance(open_metadata(folder), ParquetMetadata)


@pytest.mark.usefixtures("both_ways")
def test_a_text_that_is_no_utf8_is_damage_too(tmp_path: Path) -> None:
    folder = write(tmp_path, [nested_table(100)])
    write_metadata_arrow(folder, folder)
    path = tmp_path / METADATA_ARROW
    path.write_bytes(path.read_bytes().replace(b"caption 40", b"caption \xff0"))
    metadata = open_metadata(folder)
    assert metadata is not None
    assert metadata.rows(np.array([40]), ["text"]).to_pylist() == [{"text": "caption 40 é"}]


@pytest.mark.usefixtures("both_ways")
def test_rows_of_every_type_are_those_that_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns: dict[str, Any] = {
        "text": ["a", None, "ü", "", "b"] * 5,
        "bytes": pa.array([b"\xff", None, b"", b"x" * 300, b"\0"] * 5, pa.large_binary()),
        "small": pa.array([1, 2, None, 4, 255] * 5, pa.uint8()),
        "share": [0.5, None, float("inf"), -0.0, 1e300] * 5,
        "day": pa.array([0, None, 1, 2, 3] * 5, pa.date32()),
        "yes": [True, False, None, True, True] * 5,
        "never": pa.array([None] * 25, pa.string()),
        "blank": ["", None, "", "", ""] * 5,  # its characters are an empty buffer, which may be anywhere
        "list": [[1], [], None, [2, 3], [None]] * 5,
    }
    expected = pa.table(columns)
    monkeypatch.setattr(write_module, "BATCH_BYTES", 64)
    folder = write(tmp_path, [expected, expected.slice(3)])
    write_metadata_arrow(folder, folder)
    metadata = open_metadata(folder)
    assert isinstance(metadata, ArrowMetadata)
    assert len(metadata.batches) > 1
    whole = pa.concat_tables([expected, expected.slice(3)])
    for ids in (np.array([46, 0, 2, 2, 30, 11]), np.array([], np.int64)):
        found = metadata.rows(ids)
        found.validate(full=True)
        assert found.to_pylist() == whole.take(ids).to_pylist()
    read_directly = bool(arrow.MOST_CELLS)
    assert [bool(metadata.direct.get(place)) for place in range(len(whole.column_names))] == [
        read_directly and name not in ("yes", "list") for name in whole.column_names
    ]


def test_a_file_that_was_replaced_or_cut_short_is_not_read_in_place_of_its_map(tmp_path: Path) -> None:
    path = tmp_path / "some.arrow"
    write_arrow(ParquetFiles(write(tmp_path, [pa.table({"text": ["one", "two"]})])), path)
    mapped, before = pa.memory_map(str(path)), path.stat()
    column = pa.ipc.open_file(mapped).get_batch(0).column("text")
    direct = open_direct(str(path), mapped, before)
    assert direct is not None
    assert DirectColumn(direct, column).read(1) == b"two"
    os.truncate(path, 8)
    with pytest.raises(DamageError):
        DirectColumn(direct, column).read(1)
    path.with_suffix(".new").write_bytes(b"another file")
    path.with_suffix(".new").replace(path)
    assert open_direct(str(path), mapped, before) is None


@pytest.fixture(params=["one by one", "gathered", "gathered, of long texts"])
def each_way_to_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one by one":
        monkeypatch.setattr(cells, "FEW", 0)
    if request.param == "gathered, of long texts":
        monkeypatch.setattr(cells, "MOST_GATHERED", 2)


@pytest.mark.usefixtures("each_way_to_read")
def test_values_are_those_of_rows_column_by_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(
        {
            "text": ["a", None, "ü", "", "b"] * 5,
            "long": pa.array(["x", "y", None, "z", "\U0001f600"] * 5, pa.large_string()),
            "ascii": pa.array(["one", "", None, "three", "four"] * 5, pa.large_string()),
            "number": [1, None, -3, 2**62, 0] * 5,
            "small": pa.array([1, 2, None, 4, 255] * 5, pa.uint8()),
            "share": [0.5, None, float("inf"), -0.0, 1e300] * 5,
            "yes": [True, False, None, True, True] * 5,  # no kind that is read cell by cell
        }
    )
    monkeypatch.setattr(write_module, "BATCH_BYTES", 64)
    folder = write(tmp_path, [table, table])
    write_metadata_arrow(folder, folder)
    metadata = open_metadata(folder)
    assert isinstance(metadata, ArrowMetadata)
    assert len(metadata.batches) > 1
    whole = pa.concat_tables([table, table])
    ids = np.array([49, 0, 2, 2, 30, 11])
    for names in (["text", "long", "ascii", "number", "small", "share"], ["yes", "text"], None):
        found = metadata.values(ids, names)
        assert [field.name for field, _ in found] == (whole.column_names if names is None else names)
        assert all(values == whole[field.name].take(ids).to_pylist() for field, values in found)
    assert [values for _, values in ParquetMetadata(ParquetFiles(folder)).values(ids, ["text"])] == [
        whole["text"].take(ids).to_pylist()
    ]
    with pytest.raises(StorageError):
        metadata.values(np.array([50]))


@pytest.mark.usefixtures("each_way_to_read")
@pytest.mark.parametrize("value", [-1, 1 << 40])
def test_a_value_that_lies_outside_of_its_column_is_read_from_the_parquet_files(
    tmp_path: Path, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = nested_table(100)
    folder = write(tmp_path, [expected], group_size=50)
    write_metadata_arrow(folder, folder)
    spoil_offsets(tmp_path / METADATA_ARROW, "text", 30, value)
    metadata = open_metadata(folder)
    assert metadata is not None
    ((_, values),) = metadata.values(np.array([29, 30]), ["text"])
    assert values == expected["text"].take([29, 30]).to_pylist()
    assert "is damaged" in caplog.text


def test_a_damaged_metadata_arrow_without_parquet_files_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path, [nested_table(100)])
    write_metadata_arrow(folder, folder)
    folder.remove("metadata")
    spoil_offsets(tmp_path / METADATA_ARROW, "text", 30, 1 << 40)
    metadata = open_metadata(folder)
    assert metadata is not None
    with pytest.raises(StorageError, match=r"metadata\.arrow is damaged .*; make it again"):
        metadata.rows(np.array([30]))


@pytest.mark.parametrize("said", [b"\xff", b"3", b"[]", b'{"metadata_0.parquet": null}'])
def test_a_metadata_arrow_whose_list_of_sources_is_damaged_is_passed_over(tmp_path: Path, said: bytes) -> None:
    folder = make_folder(tmp_path)
    table = pa.table({"a": [7]}).replace_schema_metadata({SOURCES: said})
    with pa.ipc.new_file(str(tmp_path / METADATA_ARROW), table.schema) as writer:
        writer.write_table(table)
    assert rows_of(folder) == [1, 2, 3, 4]


def test_half_a_metadata_arrow_alone_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (tmp_path / METADATA_ARROW).write_bytes((tmp_path / METADATA_ARROW).read_bytes()[:-8])
    folder.remove("metadata")
    with pytest.raises(StorageError, match=r"metadata\.arrow is not a whole Arrow file"):
        open_metadata(folder)


def test_a_metadata_arrow_of_other_parquet_files_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder(tmp_path)
    pq.write_table(pa.table({"a": [9, 8]}), tmp_path / "metadata" / "metadata_2.parquet")
    assert rows_of(folder) == [1, 2, 3, 4, 9, 8]
    assert "was not made of the parquet files next to it" in caplog.text


def test_metadata_arrow_alone_is_enough(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.remove("metadata")
    assert rows_of(folder) == [1, 2, 3, 4]
    assert count_rows(folder) == 4


def test_another_store_serves_parquet_and_arrow_alone(tmp_path: Path) -> None:
    local = make_folder(tmp_path)
    remote = Folder("memory://metadata-arrow")
    remote.fs.put(local.root, remote.root, recursive=True)
    assert isinstance(open_metadata(remote), ParquetMetadata)
    assert rows_of(remote) == [1, 2, 3, 4]
    remote.remove("metadata")
    assert isinstance(open_metadata(remote), ArrowMetadata)
    assert rows_of(remote) == [1, 2, 3, 4]


def test_a_parquet_file_that_breaks_off_leaves_no_metadata_arrow(tmp_path: Path) -> None:
    folder = write(tmp_path, [pa.table({"a": [str(i) for i in range(5000)]})], group_size=1000)
    path = tmp_path / "metadata" / "metadata_0.parquet"
    data = bytearray(path.read_bytes())
    data[2000:4000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"metadata_0\.parquet cannot be read"):
        write_metadata_arrow(folder, folder)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["metadata"]


def test_batches_are_bounded_in_rows_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "BATCH_ROWS", 100)
    monkeypatch.setattr(write_module, "BATCH_BYTES", 50_000)
    monkeypatch.setattr(write_module, "READ_BYTES", 20_000)
    texts = ["x"] * 250 + [f"{i:01000d}" for i in range(200)]
    folder = write(tmp_path, [pa.table({"a": texts})], group_size=450)
    write_metadata_arrow(folder, folder)
    metadata = open_metadata(folder)
    assert isinstance(metadata, ArrowMetadata)
    assert max(map(len, metadata.batches)) <= 100
    assert max(batch.nbytes for batch in metadata.batches) <= 50_000
    assert rows_of(folder) == texts


def test_many_threads_get_their_own_rows(tmp_path: Path) -> None:
    folder = write(tmp_path, [pa.table({"a": np.arange(i * 1000, i * 1000 + 1000)}) for i in range(3)], group_size=100)
    write_metadata_arrow(folder, folder)
    for metadata in (open_metadata(folder), ParquetMetadata(ParquetFiles(folder))):
        assert metadata is not None
        asked = [np.random.default_rng(seed).integers(0, 3000, 50) for seed in range(16)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(metadata.rows, asked))
        assert [answer["a"].to_pylist() for answer in answers] == [ids.tolist() for ids in asked]


def test_a_long_answer_is_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_retrieval.metadata.arrow.ROWS_AT_ONCE", 7)
    folder = make_folder(tmp_path)
    metadata = open_metadata(folder)
    assert metadata is not None
    ids = np.random.default_rng(0).integers(0, 4, 50)
    assert metadata.rows(ids)["a"].to_pylist() == (ids + 1).tolist()


def test_a_column_that_no_file_has_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [pa.table({"a": [1]})])
    with pytest.raises(StorageError, match="has a column url; there are: a"):
        write_arrow(ParquetFiles(folder), tmp_path / "out.arrow", ["a", "url"])


class CountedNames:
    """A schema that counts how often its names are asked for; pyarrow makes a new list of them each time."""

    def __init__(self, names: list[str]) -> None:
        self.held, self.times = names, 0

    @property
    def names(self) -> list[str]:
        self.times += 1
        return self.held


def test_the_names_of_very_many_columns_are_asked_for_once(tmp_path: Path) -> None:
    table = pa.table({f"key{i}": [i] for i in range(300)})
    pq.write_table(table, tmp_path / "wide.parquet")
    about = pq.read_metadata(tmp_path / "wide.parquet")
    counted = CountedNames(table.schema.names)
    assert columns_there(Footer("wide.parquet", counted, about), table.schema) == table.schema.names
    assert counted.times == 1
    columns = Columns(about)
    assert [next(columns.chunks(name)).statistics.max for name in ("key7", "key299")] == [7, 299]
    assert list(columns.chunks("other")) == []


KINDS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.string(), ["a", None, "", "caf\u00e9 \u732b"]),
    (pa.binary(), [b"a", None, b"", b"\xff"]),
    (pa.binary(2), [b"ab", None, b"cd"]),
    (pa.bool_(), [True, None, False] * 4),
    (pa.int64(), [1, None, -(2**63), 2**63 - 1]),
    (pa.float64(), [0.5, None, float("inf"), 3]),
    (pa.list_(pa.string()), [["a", None], [], None, ["bc"]]),
    (pa.list_(pa.int64()), [[1, None], None, [2, 3]]),
    (pa.list_(pa.float64()), [[1.5], [], None]),
]


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=[str(kind) for kind, _ in KINDS])
@pytest.mark.parametrize("part", [slice(None), slice(1, 2), slice(0)])
def test_arrays_are_those_that_pyarrow_makes(kind: pa.DataType, values: list[Any], part: slice) -> None:
    made, wanted = make_array(values[part], kind), pa.array(values[part], kind)
    made.validate(full=True)
    assert made.equals(wanted)
    assert made.null_count == wanted.null_count


def test_a_number_that_does_not_fit_is_no_other_number() -> None:
    with pytest.raises((OverflowError, pa.ArrowInvalid)):
        make_array([2**63], pa.int64())


@pytest.mark.parametrize("values", [["ab", "cd"], [["ab"], ["cd"]]])
def test_strings_that_are_too_long_for_one_array_are_kept(monkeypatch: pytest.MonkeyPatch, values: list[Any]) -> None:
    monkeypatch.setattr(arrays, "MOST_BYTES", 3)
    kind = pa.string() if isinstance(values[0], str) else pa.list_(pa.string())
    assert make_array(values, kind).to_pylist() == values


def test_tables_are_made_without_pandas() -> None:
    code = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq\nfrom clip_retrieval.metadata import make_table\n"
        "schema = pa.schema([('a', pa.string()), ('b', pa.list_(pa.int64())), ('c', pa.bool_())])\n"
        "pq.write_table(make_table([{'a': 'x', 'b': [1]}, {'c': True}], schema), sys.argv[1])\n"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, os.devnull], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
