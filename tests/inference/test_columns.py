"""Metadata columns: no value is lost, and types do not depend on the order of rows."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_retrieval.inference.output.columns import (
    ARROW_TYPES,
    Columns,
    MetadataWriter,
    kind_of,
    merge_kinds,
    own_columns,
)
from clip_retrieval.inference.output.groups import RECORDS_PER_GROUP
from clip_retrieval.inference.types import Row
from clip_retrieval.sources.types import Origin

KINDS = st.sampled_from(sorted(ARROW_TYPES))
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-(2**53) - 2, 2**53 + 2)
    | st.floats() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
)  # fmt: skip
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.lists(st.lists(SCALARS, max_size=2), max_size=2)


def row(metadata: dict[str, object] | None, caption: str | None = None, path: str | None = "p") -> Row:
    return Row(
        key="key", image_path=path, caption=caption, metadata=metadata, origin=Origin("x.tar", 512, 99), has_image=True
    )


def write(path: Path, rows: Sequence[Row], columns: Columns) -> None:
    writer = MetadataWriter(path, columns)
    for start in range(0, len(rows), 2):
        writer.append(rows[start : start + 2])
    writer.finish()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def written(rows: Sequence[Row], columns: Sequence[str] = ()) -> pa.Table:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "metadata", rows, Columns(columns))
        return pq.read_table(Path(folder) / "metadata")


@pytest.mark.parametrize("count", [0, 1, RECORDS_PER_GROUP - 1, RECORDS_PER_GROUP, 2 * RECORDS_PER_GROUP + 3])
def test_rows_without_fields_are_written_as_they_come_with_the_same_bytes(tmp_path: Path, count: int) -> None:
    rows = [row(None, caption=f"a\ud800{i}", path=None if i % 3 else f"é{i}") for i in range(count)]
    paths = [tmp_path / name / "metadata" for name in ("spooled", "at once")]
    for path in paths:
        path.parent.mkdir()
        write(path, rows, Columns(own_columns(image=True, text=True, shards=True), has_fields=path is paths[0]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert pq.read_table(paths[1]).num_rows == count
    assert pq.ParquetFile(paths[1]).num_row_groups == max(1, -(-count // RECORDS_PER_GROUP))


def column(values: Sequence[object]) -> pa.ChunkedArray:
    return written([row({"a": value}) for value in values]).column("a")


def same(stored: Any, value: Any) -> bool:
    """Say whether the stored value is the value, or its json form."""
    if isinstance(value, float) and math.isnan(value):
        return stored == "NaN" or (isinstance(stored, float) and math.isnan(stored))
    if isinstance(stored, str) and not isinstance(value, str):
        return bool(json.dumps(json.loads(stored)) == json.dumps(value))
    if isinstance(value, list):
        return isinstance(stored, list) and len(stored) == len(value) and all(map(same, stored, value))
    return bool(stored == value)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6))
@example([1, 2.5])
@example([[1], [2.5]])
@example([[1, 2.5], [3]])
@example([[None], ["a"]])
@example([[], [1]])
@example([True, 1])
@example([2**53 + 1, 0.5])
@example([-(2**63), 2**63 - 1])
@example([-(2**63)])
@example([None])
def test_no_value_is_lost(values: list[object]) -> None:
    stored = column(values).to_pylist()

    assert [(old, new) for old, new in zip(values, stored, strict=True) if not same(new, old)] == []


@settings(deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_type_does_not_depend_on_the_order_of_rows(values: list[object], rng: random.Random) -> None:
    shuffled = rng.sample(values, len(values))

    assert column(shuffled).type == column(values).type


@given(first=KINDS, second=KINDS, third=KINDS)
def test_merging_kinds_knows_no_order(first: str, second: str, third: str) -> None:
    assert merge_kinds(first, second) == merge_kinds(second, first)
    assert merge_kinds(merge_kinds(first, second), third) == merge_kinds(first, merge_kinds(second, third))
    assert merge_kinds(first, first) == first


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1, None], pa.int64()),
        ([True, None], pa.bool_()),
        ([2**53 + 1, 1], pa.int64()),
        ([2**53 + 1, 1.5], pa.string()),
        ([2**63], pa.string()),
        (["a", 1], pa.string()),
        (["a", None], pa.string()),
        ([["a"], None], pa.list_(pa.string())),
        ([[1, 2]], pa.list_(pa.int64())),
        ([[1], [2.5]], pa.string()),
        ([[1, "a"]], pa.string()),
    ],
)
def test_a_column_has_the_narrowest_type_of_all_its_values(values: list[object], kind: pa.DataType) -> None:
    assert column(values).type == kind


def test_a_field_that_comes_late_is_null_before() -> None:
    table = written([row({"a": 1}), row(None), row({"b": "x"})])

    assert table.to_pydict() == {"a": [1, None, None], "b": [None, None, "x"]}


def test_our_columns_come_first_in_the_order_of_the_contract() -> None:
    table = written([row({"z": 1, "a": 2}, caption="c")], own_columns(image=True, text=True, shards=True))

    assert table.column_names == ["image_path", "caption", "shard", "shard_offset", "shard_size", "z", "a"]


def test_a_json_field_named_like_one_of_ours_is_renamed_where_it_differs() -> None:
    rows = [row({"caption": "c"}, caption="c"), row({"caption": "other"}, caption="c")]

    table = written(rows, ["caption"])

    assert table.to_pydict() == {"caption": ["c", "c"], "json.caption": [None, "other"]}


def test_a_caption_of_the_json_stays_where_there_is_no_caption_column() -> None:
    table = written([row({"caption": "c"})], own_columns(image=True, text=False, shards=False))

    assert table.to_pydict() == {"image_path": ["p"], "caption": ["c"]}


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 10_001])
def test_rows_of_every_count_are_written(count: int) -> None:
    table = written([row({"a": i}) for i in range(count)], ["image_path"])

    assert table.num_rows == count
    assert count == 0 or table.column("a").to_pylist() == list(range(count))


@given(VALUES)
def test_every_value_has_a_kind_with_a_type(value: object) -> None:
    assert kind_of(value) in ARROW_TYPES
