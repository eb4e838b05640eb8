"""Many queries from a file: one batch, results by query, and a bad query that does not affect the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_retrieval import clip_filter
from clip_retrieval.commands.filter import read_config
from clip_retrieval.errors import ClipRetrievalError, ConfigError
from clip_retrieval.filter import queries
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.filter.run import FilterResult, run_filter

WORDS = ["cat", "dog", "rocket", "sun"]
WriteIndex = Callable[..., Path]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, write_index: WriteIndex) -> Path:
    metadata = pd.DataFrame({"caption": WORDS, "query": ["q"] * 4, "width": [1, 2, 3, 4]})
    return write_index(tmp_path_factory.mktemp("batch") / "ix", metadata)


def ask_file(path: Path, out: Path, index: Path) -> FilterResult:
    return run_filter(FilterConfig(queries=str(path), output_folder=str(out), indice_folder=str(index)))


def write_csv(path: Path) -> None:
    path.write_text('name,Query\na,"dog"\nb,cat\nc,"sun, the"\n')


def write_parquet(path: Path) -> None:
    pd.DataFrame({"number": [1, 2, 3], "words": ["dog", "cat", "sun, the"]}).to_parquet(path)


def write_txt(path: Path) -> None:
    path.write_text("dog\ncat\n\nsun, the\n")


def write_jsonl(path: Path) -> None:
    path.write_text('{"query": "dog"}\n{"query": "cat"}\n{"query": "sun, the"}\n')


@pytest.mark.parametrize(
    ("name", "write"),
    [("q.csv", write_csv), ("q.parquet", write_parquet), ("q.txt", write_txt), ("q.jsonl", write_jsonl)],
)
def test_each_query_of_a_file_gets_the_hits_that_it_gets_alone(
    tmp_path: Path, index: Path, name: str, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "QUERIES_AT_ONCE", 2)
    write(tmp_path / name)
    hits = clip_filter(queries=str(tmp_path / name), output_folder=str(tmp_path / "out"), indice_folder=str(index))
    assert hits.columns.tolist()[:5] == ["query", "query_text", "rank", "id", "similarity"]
    assert hits["metadata.query"].unique().tolist() == ["q"]
    for number, text in enumerate(["dog", "cat", "sun, the"], start=1):
        own = hits[hits["query"] == number]
        alone = clip_filter(text, str(tmp_path / "alone"), str(index))
        assert own.query_text.unique().tolist() == [text]
        assert (own["rank"].tolist(), own.caption.tolist()) == ([1, 2, 3, 4], alone.caption.tolist())
        np.testing.assert_allclose(own.similarity, alone.similarity, atol=1e-5)


def test_a_bad_query_is_named_in_the_result_and_the_others_are_answered(tmp_path: Path, index: Path) -> None:
    np.save(tmp_path / "short.npy", np.ones(3, np.float32))
    lines = ["dog", "there/is/no.jpg", "cat - cat", str(tmp_path / "short.npy"), "- dog - cat", "sun"]
    (tmp_path / "q.txt").write_text("\n".join(lines))
    result = ask_file(tmp_path / "q.txt", tmp_path / "out", index)
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert table[table["rank"] == 1].caption.tolist() == ["dog", "sun"]
    failed = table[table.problem.notna()]
    assert failed["query"].tolist() == [2, 3, 4, 5]
    for problem, words in zip(
        failed.problem,
        ["no file", "cancel each other", "3 dimensions, the index has 16", "only subtracts"],
        strict=True,
    ):
        assert words in problem
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(query["query"], query["hits"]) for query in about["queries"]] == [
        (1, 4),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 0),
        (6, 4),
    ]
    assert [list(row)[:2] for row in about["results"]] == [["query", "query_text"]] * 12
    assert [failed["query"] for failed in result.to_json()["failed_queries"]] == [2, 3, 4, 5]
    sheet = (tmp_path / "out" / "index.html").read_text()
    assert [f"<h2>{n}. " in sheet for n in range(1, 8)] == [True] * 6 + [False]
    assert [f'{{"number":{n},' in sheet for n in range(1, 8)] == [True] * 6 + [False]


def test_rows_without_a_query_fail_alone(tmp_path: Path, index: Path) -> None:
    pd.DataFrame({"query": ["dog", None, " "]}).to_parquet(tmp_path / "q.parquet")
    result = ask_file(tmp_path / "q.parquet", tmp_path / "out", index)
    assert [asked.number for asked in result.hits.failed] == [2, 3]
    assert result.table.column("caption").to_pylist()[0] == "dog"


def test_with_a_file_of_queries_the_first_argument_is_the_output_folder() -> None:
    config = read_config({"queries": "queries.txt"}, ["out", "index", "2"])
    assert (config.output_folder, config.indice_folder, config.selection.num_results) == ("out", "index", 2)
    with pytest.raises(ConfigError, match="in a file or in words"):
        read_config({"queries": "queries.txt", "query": ("dog",)}, ["out", "index"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b"", "holds no query"),
        ("gone.txt", None, r"cannot be read: .*gone\.txt"),
        ("gone.parquet", None, r"gone\.parquet does not exist"),
        ("q.parquet", b"no parquet", "is not a parquet file"),
        ("q.jsonl", b'{"n": 1}\n', "has no column query and no column of texts; its columns are n"),
    ],
)
def test_a_file_that_holds_no_queries_is_one_sentence(
    tmp_path: Path, index: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipRetrievalError, match=message):
        ask_file(tmp_path / name, tmp_path / "out", index)
    assert not (tmp_path / "out").exists()


def test_pictures_of_several_queries_have_names_of_their_own(tmp_path: Path, write_index: WriteIndex) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    metadata = pd.DataFrame({"caption": ["cat"], "image_path": [str(tmp_path / "a.png")]})
    index = write_index(tmp_path / "ix", metadata)
    (tmp_path / "q.txt").write_text("dog\ncat\n")
    result = ask_file(tmp_path / "q.txt", tmp_path / "out", index)
    assert result.table.column("picture").to_pylist() == ["images/00001_00001_a.png", "images/00002_00001_a.png"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [
        "00001_00001_a.png",
        "00002_00001_a.png",
    ]


def test_a_csv_whose_first_line_is_a_query_is_told_of(
    tmp_path: Path, index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "q.csv").write_text("dog\ncat\n")
    ask_file(tmp_path / "q.csv", tmp_path / "out", index)
    assert "is read as the names of its columns (dog), not as a query; add a line query above it" in caplog.text


def test_a_file_of_which_no_query_can_be_asked_is_refused(tmp_path: Path, index: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"query": " "}\n{"query": " "}\n')
    with pytest.raises(ClipRetrievalError, match="none of 2 queries could be asked; the first: the query is empty"):
        ask_file(tmp_path / "q.jsonl", tmp_path / "out", index)
    assert not (tmp_path / "out").exists()
