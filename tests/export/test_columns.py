"""Columns under names that each engine takes, with values that each can store."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.export.check import is_alike
from clip_retrieval.export.columns import LOST_VALUES, REPLACED_TEXT, choose_columns, mend, python_values, tidy
from clip_retrieval.export.config import Engine
from clip_retrieval.export.exact import IdSum, Nearest
from clip_retrieval.export.target import without_password
from clip_retrieval.export.targets.postgres_types import dump_json, sql_type

BAD = b"caf\xe9"


def names_in(engine: Engine, *names: str) -> list[str]:
    schema = pa.schema([(name, pa.int64()) for name in names])
    return [column.name for column in choose_columns(schema, None, engine)]


def test_our_own_columns_are_never_hidden_by_metadata() -> None:
    assert names_in("parquet", "id", "caption", "Vector") == ["metadata_id", "caption", "metadata_Vector"]
    assert names_in("parquet", "metadata_id", "id") == ["metadata_id", "metadata_id_2"]


def test_names_are_those_that_an_engine_takes_and_differ() -> None:
    assert names_in("lance", "a.b", "a_b", "A_B") == ["a_b", "a_b_2", "A_B_3"]
    assert names_in("milvus", "größe", "9x", "a b", "a-b") == ["gr__e", "_9x", "a_b", "a_b_2"]
    long = names_in("pgvector", "ä" * 40, "ä" * 41, "x" * 70, "x" * 71)
    assert len(set(long)) == 4
    assert max(len(name.encode()) for name in long) <= 63


def test_an_unknown_column_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"no such column\. Did you mean caption"):
        choose_columns(pa.schema([("caption", pa.string())]), ["captoin"], "lance")


def test_texts_that_are_no_utf8_are_mended_wherever_they_stand_and_counted() -> None:
    texts = pa.array([BAD, b"good", None], pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), texts)
    odd: Counter[str] = Counter()
    mended = mend(texts, odd)
    mended.validate(full=True)
    assert mended.to_pylist() == ["caf\ufffd", "good", None]
    assert mend(lists, odd).to_pylist() == [["caf\ufffd"], ["good", None]]
    assert mend(pa.StructArray.from_arrays([texts], ["t"]), odd).to_pylist()[0] == {"t": "caf\ufffd"}
    assert odd == {REPLACED_TEXT: 3}


def test_columns_without_a_type_are_text_and_dictionaries_their_values() -> None:
    table = pa.table({"none": pa.nulls(2), "kind": pa.array(["a", None]).dictionary_encode()})
    columns = choose_columns(table.schema, None, "parquet")
    found = tidy(table, columns, Counter())
    assert found.schema.types == [pa.large_string(), pa.string()]
    assert found.to_pydict() == {"none": [None, None], "kind": ["a", None]}


def test_values_that_python_cannot_hold_are_null_and_counted() -> None:
    odd: Counter[str] = Counter()
    far = pa.chunked_array([pa.array([0, 10**17], pa.timestamp("s"))])
    assert [value is None for value in python_values(far, odd)] == [False, True]
    assert odd == {LOST_VALUES: 1}


def test_types_of_postgresql() -> None:
    kinds = [pa.uint64(), pa.timestamp("ns", "UTC"), pa.list_(pa.large_string()), pa.struct([("a", pa.int8())])]
    assert [sql_type(kind) for kind in kinds] == ["numeric", "timestamptz", "text[]", "jsonb"]
    assert sql_type(pa.list_(pa.list_(pa.int8()))) == "jsonb"
    assert dump_json({"a\0": [float("nan"), "b\0"]}) == '{"a\ufffd": [null, "b\ufffd"]}'


def test_a_value_is_alike_in_the_form_that_json_has_for_it() -> None:
    assert is_alike([1.5, None, "a\0"], [1.5, None, "a\ufffd"])
    assert is_alike(float("nan"), None)
    assert not is_alike([1], [1, 2])
    assert not is_alike("a", None)
    assert not is_alike(1.5, 1.6)


def test_no_password_is_shown() -> None:
    assert without_password("postgresql://me:secret@host:5/db?password=secret") == "postgresql://me@host:5/db"
    assert without_password("/a:b@c/d") == "/a:b@c/d"


@pytest.mark.parametrize("step", [1, 7, 50])
def test_the_nearest_rows_are_the_same_however_they_are_cut(step: int) -> None:
    random = np.random.default_rng(0)
    rows, queries = (random.standard_normal((count, 8)).astype(np.float32) for count in (50, 3))
    nearest = Nearest(queries, 5)
    for start in range(0, len(rows), step):
        nearest.add(np.arange(start, min(start + step, 50)), rows[start : start + step])
    assert nearest.ids.tolist() == np.argsort(-(queries @ rows.T), axis=1)[:, :5].tolist()


def test_ids_are_the_same_in_any_order_and_never_with_one_lost_or_doubled() -> None:
    def summed(*parts: list[int]) -> IdSum:
        found = IdSum()
        for part in parts:
            found.add(np.array(part, np.int64))
        return found

    assert summed([1, 2, 3]) == summed([3], [], [2, 1])
    assert summed([1, 2, 3]) != summed([1, 2])
    assert summed([1, 2, 2]) != summed([1, 1, 2])
    assert summed([1, 2, 3, 3]) != summed([1, 2])
