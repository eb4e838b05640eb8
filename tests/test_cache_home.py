from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval import cache_home as caches
from clip_retrieval.cache_home import cache_home, find_obstacle, hub_repository, keep_small, openai_folders, read_small
from tests.encoder.damage import WAYS

VARIABLES = ("CLIP_RETRIEVAL_CACHE", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


@pytest.mark.parametrize(
    ("given", "own", "hub"),
    [
        ({}, "/home/me/.cache/clip-retrieval", "/home/me/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/clip-retrieval", "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"}, "/x/clip-retrieval", "/home/me/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/home/me/.cache/clip-retrieval", "/old"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/home/me/.cache/clip-retrieval", "/new"),
        ({"CLIP_RETRIEVAL_CACHE": "~/own", "XDG_CACHE_HOME": "/x"}, "/home/me/own", "/x/huggingface/hub"),
        (
            {"CLIP_RETRIEVAL_CACHE": "", "HF_HOME": ""},
            "/home/me/.cache/clip-retrieval",
            "/home/me/.cache/huggingface/hub",
        ),
    ],
)
def test_caches_lie_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], own: str, hub: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (cache_home(), hub_repository("org/name")) == (Path(own), Path(hub) / "models--org--name")


def test_a_named_cache_goes_before_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    monkeypatch.setenv("CLIP_DIR", "~/clip")
    assert hub_repository("org/name", "~/mine") == Path("/home/me/mine/models--org--name")
    assert openai_folders("~/mine") == [Path("/home/me") / name for name in ("mine", "clip", ".cache/clip")]
    assert openai_folders() == [Path("/home/me/clip"), Path("/home/me/.cache/clip")]


def test_small_files_that_were_not_used_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MOST_FILES", 3)
    for number in range(3):
        keep_small(tmp_path / "kind" / f"{number}.json", str(number))
        os.utime(tmp_path / "kind" / f"{number}.json", (number, number))
    assert read_small(tmp_path / "kind" / "0.json") == b"0"  # used just now
    keep_small(tmp_path / "kind" / "3.json", "3")
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == ["0.json", "2.json", "3.json"]
    assert read_small(tmp_path / "kind" / "1.json") is None


@pytest.mark.parametrize("damage", WAYS)
def test_a_damaged_small_file_is_none_and_is_written_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    place = tmp_path / "kind" / "1.json"
    keep_small(place, "[1000, 2000]")
    assert read_small(place) == b"[1000, 2000]"
    damage(place)
    assert read_small(place) is None
    keep_small(place, "[3]")
    assert read_small(place) == b"[3]"
    place.write_bytes(place.read_bytes().replace(b"3", b"4"))
    assert read_small(place) is None
    assert [path.name for path in place.parent.iterdir()] == ["1.json"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file", "it is a file"), ("file/below", "a file is in the place of a folder"), ("/proc/nowhere", "No such file")],
)
def test_a_cache_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / place))
    said = find_obstacle() or ""
    assert f"{tmp_path / place} cannot be written ({reason}" in said
    assert "CLIP_RETRIEVAL_CACHE" in said
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "new" / "folder"))
    assert find_obstacle() is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "read-only" in (find_obstacle() or "")


def test_nothing_is_left_of_a_small_file_that_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "replace", fail)
    keep_small(tmp_path / "kind" / "1.json", "1")
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_small_file_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "kind").write_text("a file where a folder should be")
    keep_small(tmp_path / "kind" / "1.json", "1")
    assert read_small(tmp_path / "kind" / "1.json") is None
