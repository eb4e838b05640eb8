"""`index --dry_run`: how it ends where nothing can be built, and what it says of updates."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.cli import cli

NOTE = "an update changes the index in place if it can; this is what building it from scratch would make"


@pytest.fixture
def folders(tmp_path: Path, unit_rows: Callable[..., NDArray[np.float32]], write_run: Callable[..., Path]) -> list[str]:
    """Give an embeddings folder of pictures and captions, and the place of its index."""
    rows = unit_rows(300, 32)
    return [str(write_run(tmp_path / "emb", [rows], [rows])), str(tmp_path / "ix")]


def look(folders: list[str], *options: str) -> Result:
    return CliRunner().invoke(cli, ["index", *folders, "--dry_run", *options])


def test_what_can_be_built_ends_well(folders: list[str]) -> None:
    told, as_json = look(folders), look(folders, "--json")
    assert (told.exit_code, as_json.exit_code) == (0, 0)
    assert NOTE not in told.output
    assert [(shown["refusal"], shown["note"]) for shown in json.loads(as_json.stdout).values()] == [(None, None)] * 2


def test_what_fits_nowhere_is_shown_and_ends_with_1(folders: list[str]) -> None:
    told = look(folders, "--max_index_memory_usage", "1KB")
    assert told.exit_code == 1
    assert told.stdout.count("too large") == 10
    assert told.stdout.count("no index of 300 x 32 vectors fits into max_index_memory_usage 1.0 kB") == 2
    as_json = look(folders, "--max_index_memory_usage", "1KB", "--json")
    assert as_json.exit_code == 1
    shown = json.loads(as_json.stdout)
    assert [shown[name]["chosen"] for name in ("image", "text")] == [None, None]
    assert all("fits into max_index_memory_usage 1.0 kB" in shown[name]["refusal"] for name in shown)


def test_a_place_that_cannot_be_written_is_told_of_beneath_the_table(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and is_allowed(path, mode))
    told = look(folders)
    assert told.exit_code == 1
    said = f"cannot write to {folders[1]}: {tmp_path} cannot be written to; name another folder"
    assert "-> Flat" in " ".join(told.stdout.replace("│", "").split())
    assert told.stdout.splitlines()[-1] == said
    as_json = look(folders, "--json")
    assert as_json.exit_code == 1
    assert [shown["refusal"] for shown in json.loads(as_json.stdout).values()] == [said, said]


def test_an_update_is_said_to_change_the_index_in_place(folders: list[str]) -> None:
    assert NOTE not in look(folders, "--update").output  # there is none to change
    clip_index(*folders, nb_cores=1)
    told = look(folders, "--update")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[-1] == NOTE
    assert {shown["note"] for shown in json.loads(look(folders, "--update", "--json").stdout).values()} == {NOTE}
