"""What reaches the terminal: whole, short, and without control characters."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from clip_retrieval.cli import cli
from clip_retrieval.commands import Outcome
from clip_retrieval.commands.reports.console import Cell, SafeConsole, make_table, open_console, quoted

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \u202egnp.exe \x9b2J\r"
OBEYED = ("\x1b", "\x07", "\u202e", "\x9b", "\r")


@pytest.fixture
def run() -> Iterator[Callable[..., Result]]:
    """Give a function that runs the command line; the handlers that it installs are removed afterwards."""
    level = logging.getLogger("clip_retrieval").level
    yield lambda *words: CliRunner().invoke(cli, [str(word) for word in words])
    logging.getLogger().handlers.clear()
    logging.getLogger("clip_retrieval").setLevel(level)


def render(thing: Any, width: int = 40) -> str:
    console = SafeConsole(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    console.print(thing)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_lines_titles_headings_and_cells_are_escaped() -> None:
    table = make_table([HOSTILE, "plain"], title=HOSTILE)
    table.add_row(HOSTILE, Cell(HOSTILE))
    printed = render(table, width=200) + render(HOSTILE)
    assert not [mark for mark in OBEYED if mark in printed]
    assert printed.count("\\x1b[31mred") == 5
    assert "\\u202egnp" in printed


def test_a_table_stays_in_line_where_something_is_escaped() -> None:
    table = make_table(["name"])
    table.add_row("\x1b\x1b")
    table.add_row("a long name")
    assert len({len(line) for line in render(table).splitlines()}) == 1


@pytest.mark.parametrize("keeps_end", [False, True])
@pytest.mark.parametrize("text", ["x" * 5000, "word " * 2000, "\u597d" * 3000, "line\n" * 2006])
def test_a_cell_has_two_lines_and_says_what_is_left_out(text: str, keeps_end: bool) -> None:
    table = make_table(["caption"])
    table.add_row(Cell(text, keeps_end=keeps_end))
    lines = render(table).splitlines()[3:-1]
    assert len(lines) == 2
    assert lines[0 if keeps_end else 1].strip("\u2502 ").strip().startswith("\u2026" if keeps_end else text[0])
    assert "".join(lines).count("\u2026") == 1


@pytest.mark.parametrize("text", ["", "cat", "a caption that fills one line and more"])
def test_a_short_text_is_whole(text: str) -> None:
    table = make_table(["caption"])
    table.add_row(Cell(text))
    printed = render(table, width=30)
    assert "\u2026" not in printed
    assert text.split() == " ".join(line.strip("\u2502 ") for line in printed.splitlines()[3:-1]).split()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("a dog's", '"a dog\'s"'),
        ("two\n lines", "'two lines'"),
        ("word\n" * 2000, f"'{'word ' * 19}word…'"),
        (HOSTILE, None),
    ],
)
def test_a_query_in_a_title_is_a_short_line(query: str, shown: str | None) -> None:
    assert shown is None or quoted(query) == shown
    assert not [mark for mark in OBEYED if mark in quoted(query)]


def test_json_is_lossless_and_safe(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"name": HOSTILE, "raw": "caf\udce9", "kept": "\u00e9 \U0001f469\u200d\U0001f680"}
    Outcome(values, print).print(as_json=True)
    printed = capsys.readouterr().out
    assert not [mark for mark in (*OBEYED, "\udce9") if mark in printed]
    assert json.loads(printed) == values


def test_hits_with_long_and_hostile_captions_take_two_lines_each(
    tmp_path: Path, write_index: Callable[..., Path], run: Callable[..., Result]
) -> None:
    captions = ["first\n" * 2000, HOSTILE + "x" * 9000, "short"]
    metadata = pd.DataFrame({"caption": captions, "image_path": ["/d/" * 200 + "a.jpg", HOSTILE, None]})
    answer = run("filter", HOSTILE, tmp_path / "out", write_index(tmp_path / "ix", metadata))
    assert answer.exit_code == 0, answer.exception
    assert not [mark for mark in OBEYED if mark in answer.output]
    assert len(answer.output.splitlines()) < 20
    assert "/a.jpg" in answer.output.replace("\n", "")


@pytest.mark.parametrize("words", [["filter", f"./{HOSTILE}.jpg", "out", "ix"], ["filter", f"--{HOSTILE}"], [HOSTILE]])
def test_errors_that_repeat_a_name_are_escaped(
    tmp_path: Path, write_index: Callable[..., Path], run: Callable[..., Result], words: list[str]
) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["a"]}))
    answer = run(*(str(index) if word == "ix" else word for word in words))
    assert answer.exit_code in (1, 2)
    assert "\\x1b[31mred" in answer.output
    assert not [mark for mark in OBEYED if mark in answer.output]


def test_warnings_that_name_a_file_are_escaped(
    tmp_path: Path, write_index: Callable[..., Path], run: Callable[..., Result]
) -> None:
    index = write_index(tmp_path / HOSTILE, pd.DataFrame({"caption": ["a"]}))
    (index / "metadata.arrow").write_bytes(b"damaged")
    answer = run("filter", "a", tmp_path / "out", index)
    assert answer.exit_code == 0, answer.exception
    assert "metadata.arrow is not a whole Arrow file" in answer.output
    assert not [mark for mark in OBEYED if mark in answer.output]


def test_a_line_of_a_report_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    open_console().print("/a/long/path" * 50)
    assert len(capsys.readouterr().out.splitlines()) == 1
