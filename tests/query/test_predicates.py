"""Conditions over metadata: what they keep, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_retrieval.errors import QueryError
from clip_retrieval.metadata import Metadata, open_metadata
from clip_retrieval.query.predicates import LONGEST, open_sandbox, parse_predicate, rows_where
from clip_retrieval.storage import Folder

COLUMNS = ["width", "license", "caption", "source.site", "tags"]
TABLE = pd.DataFrame(
    {
        "width": [100, 600, 700, None, 600],
        "license": ["cc0", "cc0", "by", "cc0", None],
        "caption": ["a dog", "it's a DOG", "50% off", "", None],
        "source.site": ["x", "y", "x", "y", "x"],
        "tags": [["a"], ["a", "b"], [], None, ["b"]],
    }
)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    folder = tmp_path_factory.mktemp("metadata")
    (folder / "metadata").mkdir()
    TABLE[:2].to_parquet(folder / "metadata" / "metadata_0.parquet")
    TABLE[2:].to_parquet(folder / "metadata" / "metadata_1.parquet")
    opened = open_metadata(Folder(str(folder)))
    assert opened is not None
    return opened


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("width >= 512 and license = 'cc0'", [1]),
        ("WIDTH < 650", [0, 1, 4]),
        ("width is null or license is null", [3, 4]),
        ("caption ilike '%dog%'", [0, 1]),
        ("caption like '%''s%'", [1]),
        ("source.site = 'x' and not width = 100", [2, 4]),
        ("\"source.site\" in ('y')", [1, 3]),
        ("list_contains(tags, 'b')", [1, 4]),
        ("id between 1 and 2", [1, 2]),
        ("width > 1) or (width is null", [0, 1, 2, 3, 4]),
        ("width >= 512 -- and nothing", [1, 2, 4]),
        ("true", [0, 1, 2, 3, 4]),
        ("false", []),
        ("null", []),
    ],
)
def test_a_condition_keeps_the_rows_that_meet_it(metadata: Metadata, condition: str, rows: list[int]) -> None:
    assert rows_where(metadata, condition).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("", "--where is empty"),
        ("width in (select 1)", "a sub-select is not one"),
        ("exists(from duckdb_settings())", "a sub-select is not one"),
        ("1) union select 1 --", "syntax error"),
        ("true; drop table rows", "syntax error"),
        ("width > 1 limit 3", "syntax error"),
        ("width > 1) group by (width", "more than one condition"),
        ("read_text('/etc/passwd') = 'x'", "read_text is not a function"),
        ("getenv('HOME') = 'x'", "getenv is not a function"),
        ("current_setting('threads') = '2'", "current_setting is not a function"),
        ("repeat('x', 1000000000000) = 'x'", "repeat is not a function"),
        ("lowr(caption) = 'x'", "did you mean lower?"),
        ("sum(width) > 1", "sum is not a function"),
        ("row_number() over () > 3", "a window function"),
        ("width = ?", "a parameter"),
        ("widht > 1", "Did you mean width?"),
        ("license = cc0", "put texts in single quotes"),
        ("width > 'wide'", "column width holds numbers"),
        ("tags = 1", "column tags holds lists of text; write list_contains(tags, VALUE)"),
        ("width > 1 and license = 5", "column license holds text"),
        ("id = 'k0'", "id is the row's id, a number"),
        ("license in ()", "() holds no values; write a list of values after in"),
        ("(" * 300 + "1" + ")" * 300, "depth limit"),
        ("width = 1 or " * LONGEST + "true", "characters"),
        ("width > 1 /*", "unterminated"),
        ("width = 1\x00", "--where"),
    ],
)
def test_what_is_no_condition_is_one_sentence(metadata: Metadata, condition: str, said: str) -> None:
    with pytest.raises(QueryError) as caught:
        rows_where(metadata, condition)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("condition", ["width >", "width > 1 and", "license in ('cc0'", "not", "/* width"])
def test_the_sentence_about_an_unfinished_condition_has_no_parenthesis_of_ours(
    metadata: Metadata, condition: str
) -> None:
    with pytest.raises(QueryError) as caught:
        rows_where(metadata, condition)
    assert ")" not in str(caught.value)
    assert condition in str(caught.value)


def test_a_value_of_the_wrong_type_is_told_with_the_condition_as_it_was_typed(metadata: Metadata) -> None:
    with pytest.raises(QueryError, match=r"^--where width > 'wide': "):
        rows_where(metadata, "width > 'wide'")


def test_a_condition_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    pd.DataFrame({"text": ["a" * 2000] * 2000}).to_parquet(tmp_path / "metadata" / "metadata_0.parquet")
    metadata = open_metadata(Folder(str(tmp_path)))
    assert metadata is not None
    with pytest.raises(QueryError, match="took longer than"):
        rows_where(metadata, "levenshtein(text, text || 'b') + levenshtein('b' || text, text) > 1", seconds=0.01)


def test_id_is_the_row_and_a_metadata_column_of_this_name_has_the_name_of_results(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    pd.DataFrame({"id": ["k0", "k1", "k2"]}).to_parquet(tmp_path / "metadata" / "metadata_0.parquet")
    metadata = open_metadata(Folder(str(tmp_path)))
    assert metadata is not None
    assert rows_where(metadata, "id < 2").tolist() == [0, 1]
    assert rows_where(metadata, "\"metadata.id\" = 'k1' or id = 2").tolist() == [1, 2]
    with pytest.raises(QueryError, match=r'column of this name is "metadata\.id"'):
        rows_where(metadata, "id = 'k1'")


def test_columns_that_differ_in_case_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    table = pd.DataFrame({"id": ["a", "b", "c"], "ID": [7, 8, 9], "w": [1, 2, 3], "W": [6, 5, 4]})
    table.to_parquet(tmp_path / "metadata" / "metadata_0.parquet")
    metadata = open_metadata(Folder(str(tmp_path)))
    assert metadata is not None
    assert rows_where(metadata, "ID = 8 and id = 1 and metadata.id = 'b' and w = 2 and W = 5").tolist() == [1]


def test_only_the_columns_of_a_condition_are_named() -> None:
    with open_sandbox() as sandbox:
        found = parse_predicate(sandbox, "width > 1 and license = 'a'", COLUMNS)
    assert set(found.columns) == {"width", "license"}


def test_ids_ascend(metadata: Metadata) -> None:
    ids = rows_where(metadata, "true")
    assert ids.dtype == np.int64
    assert (np.diff(ids) > 0).all()
