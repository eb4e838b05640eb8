"""The helper process: a file that kills it is blamed, and the next question is answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clip_retrieval.errors import ImageError
from clip_retrieval.media.helper import Helper, Helpers


class Endless:
    """Keeps a process that unpickles it busy."""

    def __reduce__(self) -> tuple[Callable[[float], object], tuple[float]]:
        return time.sleep, (3600.0,)


class Deadly:
    """Ends a process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (3,)


def test_a_question_that_kills_the_process_is_blamed_and_the_next_one_answered(
    tmp_path: Path, make_pdf: Callable[..., bytes]
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf("one", "two"))
    with Helper() as helper:
        with pytest.raises(ImageError, match="ended with code 3") as refused:
            helper.ask("count_pages", Deadly())
        assert refused.value.reason == "killed_reader"
        assert helper.ask("count_pages", str(path)) == 2
        assert helper.process is not None
        os.kill(helper.process.pid, signal.SIGKILL)  # for another reason: no file is to blame
        assert helper.ask("count_pages", str(path)) == 2


def test_what_is_wrong_with_a_file_comes_back_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    )
    with Helper() as helper:
        for name, reason in (("a.pdf", "git_lfs_pointer"), ("none.pdf", "unreadable")):
            with pytest.raises(ImageError) as refused:
                helper.ask("count_pages", str(tmp_path / name))
            assert refused.value.reason == reason


def test_several_processes_answer_at_once_and_end_with_their_questions(
    tmp_path: Path, make_pdf: Callable[..., bytes]
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf("one", "two"))
    with ThreadPoolExecutor(1) as threads:
        with Helpers(2) as helpers:
            endless = threads.submit(helpers.ask, "count_pages", Endless())
            assert helpers.ask("count_pages", str(path)) == 2
        with pytest.raises(ImageError):
            endless.result()
        with pytest.raises(ImageError, match="the run was ended"):
            helpers.ask("count_pages", str(path))
