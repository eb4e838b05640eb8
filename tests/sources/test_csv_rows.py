"""Csv with quotes that have no end: no row is lost, and the line is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from clip_retrieval.errors import SourceError
from clip_retrieval.sources.csv_rows import read_rows
from clip_retrieval.sources.csv_table import open_csv
from clip_retrieval.sources.types import Failure


def rows_of(text: str, delimiter: str = ",") -> list[tuple[list[str], int | None]]:
    width = text.partition("\n")[0].count(delimiter) + 1
    return list(read_rows(io.StringIO(text, newline=""), delimiter, width))


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("open_lines", [[2], [50], [100], [2, 3, 50], [50, 60, 99, 100], range(2, 101)])
def test_a_quote_that_never_ends_swallows_no_row(delimiter: str, ending: str, open_lines: list[int]) -> None:
    lines = [["caption", "url"]] + [[f"picture {n}", f"http://x/{n}.jpg"] for n in range(2, 101)]
    for number in open_lines:
        lines[number - 1][0] = f'"{lines[number - 1][0]}'

    found = rows_of(ending.join(delimiter.join(cells) for cells in lines) + ending, delimiter)

    assert [cells for cells, _ in found] == lines
    assert [number for _, number in found if number is not None] == list(open_lines)


@pytest.mark.parametrize("closing", ['5 ft 6"', '6" tall, "quoted"'])
def test_a_quote_that_a_later_row_seems_to_end_swallows_no_row(closing: str) -> None:
    lines = ["url,caption", 'http://x/1.jpg,"open', "http://x/2.jpg,b", f"http://x/3.jpg,{closing}", "http://x/4.jpg,d"]

    assert [cells[0] for cells, _ in rows_of("\n".join(lines))][1:] == [f"http://x/{n}.jpg" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('"a, b",u', ["a, b", "u"]),
        ('"two\nlines, with\nhttp://x/y",u', ["two\nlines, with\nhttp://x/y", "u"]),
        ('"said ""no""",u', ['said "no"', "u"]),
        ('"odd" end,u', ["odd end", "u"]),
        ('5" wide,u', ['5" wide', "u"]),
        ('a,"', ["a", '"']),
    ],
)
def test_other_quotes_mean_what_they_meant(line: str, cells: list[str]) -> None:
    found = rows_of(f"caption,url\n{line}\nx,y\n")

    assert [cells for cells, _ in found] == [["caption", "url"], cells, ["x", "y"]]
    assert [number for _, number in found] == [None, 2 if cells[1] == '"' else None, None]


def test_the_rows_of_a_table_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('caption\turl\n"a\tu\n\nb\tv\n')

    failure, *rows = open_csv(str(tmp_path / "t.tsv")).rows(0, None, ["caption", "url"])

    assert isinstance(failure, Failure)
    assert (failure.key, failure.reason, failure.row_kept) == ("0", "open_quote", True)
    assert "line 2" in failure.detail
    assert rows == [(0, {"caption": '"a', "url": "u"}), (1, {"caption": "b", "url": "v"})]


@pytest.mark.parametrize(
    "rows", ["http://x/1.jpg,a\n", 'http://x/1.jpg,a\nhttp://x/2.jpg,"b"\n', 'http://x/1.jpg,a\nhttp://x/2.jpg,b"\n']
)
def test_a_quote_without_an_end_among_the_column_names_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "t.csv").write_text(f'url,"caption\n{rows}')

    with pytest.raises(SourceError, match=r"^a quote in the first line of .*, which names the columns, has no end; "):
        open_csv(str(tmp_path / "t.csv"))


def test_a_column_name_may_have_two_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('url,"the\ncaption"\nhttp://x/1.jpg,a\n')

    assert list(open_csv(str(tmp_path / "t.csv")).kinds) == ["url", "the\ncaption"]
