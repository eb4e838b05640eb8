"""Which files an input names: what exists literally, and what is a pattern."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from braceexpand import braceexpand

from clip_retrieval.errors import SourceError
from clip_retrieval.sources.patterns import expand_braces, list_inputs

FOLDERS = ("photos [2024]", "(round)", "a{b,c}d", "star*", "what?", "[1]")


def names_of(text: str) -> list[str]:
    return [Path(url).name for url in list_inputs(text, (".tar",), "tar")]


@pytest.fixture(params=FOLDERS)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a folder whose name is also a pattern, with two tars and what macOS writes next to one."""
    for name in ("x.tar", "y.tar", "._y.tar"):
        (tmp_path / str(request.param)).mkdir(exist_ok=True)
        (tmp_path / str(request.param) / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return str(request.param)


@pytest.mark.parametrize("prefix", ["", "./"])
def test_what_exists_is_no_pattern(odd: str, prefix: str) -> None:
    assert names_of(f"{prefix}{odd}") == names_of(f"{prefix}{odd}/") == ["x.tar", "y.tar"]
    assert names_of(f"{prefix}{odd}/y.tar") == ["y.tar"]


@pytest.mark.parametrize("pattern", ["{x,y}.tar", "[xy].tar", "*.tar", "?.tar"])
def test_patterns_work_below_it(odd: str, pattern: str) -> None:
    assert names_of(f"{odd}/{pattern}") == ["x.tar", "y.tar"]


def test_a_pattern_with_a_dot_asks_for_hidden_files(odd: str) -> None:
    assert names_of(f"{odd}/._*") == ["._y.tar"]


def test_lists_are_lists(odd: str) -> None:
    assert names_of(str([f"{odd}/y.tar", f"{odd}/[x].tar"])) == ["y.tar", "x.tar"]
    with pytest.raises(SourceError, match="is not a list of tars"):
        names_of("[nothing]/x.tar")


def test_objects_of_a_store_may_have_such_names_too() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("a [1]/x.tar", "a{b,c}/x.tar", "a1/x.tar"):
        fs.pipe_file(f"/odd/{name}", b"x")

    assert list_inputs("memory://odd/a [1]", (".tar",), "tar") == ["memory://odd/a [1]/x.tar"]
    assert list_inputs("memory://odd/a{b,c}/x.tar", (".tar",), "tar") == ["memory://odd/a{b,c}/x.tar"]
    assert list_inputs("memory://odd/a[1]/*.tar", (".tar",), "tar") == ["memory:///odd/a1/x.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..12}.tar",
        "a/{000..012}",
        "{8..012}.tar",
        "{0..0}",
        "{5..1}",
        "{1..9..3}",
        "{a..c}",
        "{1..2}{x,y}",
        "x",
        "{}",
    ],
)
def test_a_range_of_numbers_stands_for_what_braceexpand_says(pattern: str) -> None:
    assert list(expand_braces(pattern)) == list(braceexpand(pattern, escape=False))
