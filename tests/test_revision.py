"""A revision: all of it or nothing; the next process that reads finishes one that was killed."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from clip_retrieval import revision
from clip_retrieval.errors import StorageError
from clip_retrieval.layout import JOURNAL, REVISION_FOLDER
from clip_retrieval.revision import Revision, finish_revision, only_one, settle
from clip_retrieval.storage import Folder

RunUntil = Callable[[int | None, Callable[[], object]], list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    return tmp_path


def change(folder: Path) -> None:
    planned = Revision(str(folder))
    planned.remove("b")
    for name in ("a", "c"):
        with planned.staged(name) as staged:
            staged.write_text("new")
    planned.commit()


def test_what_is_removed_and_then_written_again_is_there(folder: Path) -> None:
    planned = Revision(str(folder))
    planned.remove("a")
    with planned.staged("a") as staged:
        staged.write_text("new")
    planned.commit()
    assert content(folder) == {"a": "new", "b": "old"}


@pytest.mark.parametrize("url", ["file", "memory"])
def test_folders_replace_files_and_folders(tmp_path: Path, run_until: RunUntil, url: str) -> None:
    def write(name: str) -> None:
        root = f"{tmp_path}/{name}" if url == "file" else f"memory://{tmp_path}-{name}"
        folder = Folder(root)
        for place, text in (("a/x", "old"), ("a/y", "old"), ("b", "old")):
            with folder.staged(place) as staged:
                staged.write_text(text)
        planned = Revision(root)
        with planned.staging() as scratch:
            for place in ("a", "b"):
                (scratch / place).mkdir()
                (scratch / place / "x").write_text("new")
                planned.publish(scratch / place, place)
        planned.commit()

    steps = run_until(None, lambda: write("whole"))
    for last in [None, *range(steps.index("move"), len(steps))]:
        folder = Folder(f"{tmp_path}/{last}" if url == "file" else f"memory://{tmp_path}-{last}")
        run_until(last, lambda name=str(last): write(name))  # type: ignore[misc]
        settle(folder)
        assert (folder.names("a", ""), folder.read_bytes("a/x"), folder.read_bytes("b/x")) == (["x"], b"new", b"new")


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_until_the_commit_nothing_is_changed(folder: Path) -> None:
    planned = Revision(str(folder))
    planned.remove("b")
    with planned.staged("a") as staged:
        staged.write_text("new")
    assert content(folder) == {"a": "old", "b": "old"}
    planned.commit()
    assert content(folder) == {"a": "new"}


def test_a_kill_at_any_step_leaves_the_old_or_what_settles_into_the_new(tmp_path: Path, run_until: RunUntil) -> None:
    old, new = {"a": "old", "b": "old"}, {"a": "new", "c": "new"}

    def prepared(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in old:
            (tmp_path / name / file).write_text("old")
        return tmp_path / name

    steps = run_until(None, lambda: change(prepared("whole")))
    assert len(steps) > 6
    for last in range(len(steps)):
        folder = prepared(str(last))
        run_until(last, lambda here=folder: change(here))  # type: ignore[misc]
        begun = (folder / JOURNAL).exists()
        settle(Folder(str(folder)))
        assert content(folder) == (new if begun else content(folder))
        assert content(folder) in (old, new)
        change(folder)
        assert content(folder) == new
        assert not (folder / REVISION_FOLDER).exists()


def test_a_reader_waits_for_a_process_that_commits_just_now(folder: Path, run_until: RunUntil) -> None:
    steps = run_until(None, lambda: change(folder))
    (folder / "b").write_text("old")
    run_until(steps.index("move"), lambda: change(folder))
    with only_one(Folder(str(folder))):
        reader = threading.Thread(target=settle, args=(Folder(str(folder)),))
        reader.start()
        reader.join(0.1)
        assert reader.is_alive()
        finish_revision(Folder(str(folder)))
    reader.join()
    assert content(folder) == {"a": "new", "c": "new"}


def test_a_folder_that_stays_locked_is_a_sentence(
    folder: Path, run_until: RunUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "SECONDS_OF_PATIENCE", 0.02)
    run_until(run_until(None, lambda: change(folder)).index("move"), lambda: change(folder))
    with only_one(Folder(str(folder))), pytest.raises(StorageError, match="another process is changing"):
        settle(Folder(str(folder)))


def test_what_cannot_be_finished_is_a_sentence(
    folder: Path, run_until: RunUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(run_until(None, lambda: change(folder)).index("move"), lambda: change(folder))

    def move(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "a")

    monkeypatch.setattr(Folder, "move", move)
    with pytest.raises(StorageError, match=r"stopped halfway and cannot be finished .*Permission denied"):
        settle(Folder(str(folder)))


@pytest.mark.parametrize(
    "journal",
    [
        {"writes": {"../outside.txt": "_revision/0"}, "removals": []},
        {"writes": {"inside.txt": "/etc/hostname"}, "removals": []},
        {"writes": {}, "removals": ["../outside.txt"]},
        {"writes": {}, "removals": [""]},
        {"writes": ["a"], "removals": []},
        {"removals": []},
        [],
    ],
)
def test_a_journal_of_strangers_moves_nothing_out_of_its_folder(tmp_path: Path, journal: object) -> None:
    folder = tmp_path / "ix"
    (folder / "_revision").mkdir(parents=True)
    (folder / "_revision" / "0").write_text("new")
    (tmp_path / "outside.txt").write_text("old")
    (folder / "_revision" / "journal.json").write_text(json.dumps(journal))
    with pytest.raises(StorageError, match=r"journal\.json"):
        finish_revision(Folder(str(folder)))
    assert (tmp_path / "outside.txt").read_text() == "old"
    assert (folder / "_revision" / "0").exists()


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EIO, True), (errno.ENOLCK, False), (errno.ENOSYS, False)])
def test_only_a_file_system_without_locks_does_without_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, is_refused: bool
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="there is no flock here")

    def fail(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    refusal = pytest.raises(StorageError, match=r"cannot be locked: ") if is_refused else nullcontext()
    with refusal, only_one(Folder(str(folder))):
        pass
