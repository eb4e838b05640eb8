"""An index in parts on servers of their own: one is killed in the middle of requests, and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = pytest.mark.clusters

SECONDS = 120


@contextmanager
def back(*options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `back` as a process until the block ends; give it and its address."""
    command = [sys.executable, "-m", "clip_retrieval", "back", *(str(option) for option in options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = [""]
            while " answers; its pages" not in lines[-1]:
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or its pipe fills
            yield process, lines[-1].split()[0]
        finally:
            process.kill()


def search(url: str) -> dict[str, Any]:
    body = json.dumps({"queries": [[{"embedding": [1.0] * 16}]], "limit": 100}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/search", body), timeout=SECONDS) as answer:
        said: dict[str, Any] = json.loads(answer.read())
        return said


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_part_that_is_killed_is_told_of_and_used_again(
    tmp_path: Path, write_index: Callable[..., Path], unit_rows: Callable[..., Any]
) -> None:
    rows = unit_rows(100, 16)
    captions = pd.DataFrame({"caption": [f"row {number}" for number in range(100)]})
    folders = [
        write_index(
            tmp_path / str(start), captions[start : start + 50].reset_index(drop=True), rows=rows[start : start + 50]
        )
        for start in (0, 50)
    ]
    with ExitStack() as stack:
        first, second = (stack.enter_context(back(folder, "--port", 0)) for folder in folders)
        _, front = stack.enter_context(back("--parts", f"{first[1]},{second[1]}", "--port", 0, "--part_timeout", 60))
        whole = search(front)["results"][0]["hits"]
        assert len(whole) == 100
        partial: list[int] = []
        is_over = threading.Event()

        def ask_on() -> None:
            while not is_over.is_set():
                said = search(front)  # raises if the server fails
                partial.append(len(said.get("partial", ())))

        asking = threading.Thread(target=ask_on)
        asking.start()
        wait_until(lambda: 0 in partial)
        os.kill(second[0].pid, signal.SIGKILL)
        second[0].wait()
        wait_until(lambda: 1 in partial)
        (missing,) = search(front)["partial"]
        assert (missing["part"], missing["first_id"], missing["rows"]) == (2, 50, 50)
        stack.enter_context(back(folders[1], "--port", second[1].rpartition(":")[2]))
        seen = len(partial)
        wait_until(lambda: 0 in partial[seen:])
        is_over.set()
        asking.join()
        assert search(front)["results"][0]["hits"] == whole
        check_silence(f"{first[1]},{second[1]}", first[0].pid)


def check_silence(parts: str, process: int) -> None:
    """A part that takes requests, and never answers, is left out until it does."""
    with back("--parts", parts, "--port", 0, "--part_timeout", 2, "--reload_seconds", 0) as (_, front):
        os.kill(process, signal.SIGSTOP)
        try:
            assert 1 in [missing["part"] for missing in search(front)["partial"]]
        finally:
            os.kill(process, signal.SIGCONT)
        wait_until(lambda: "partial" not in search(front))
