"""Pictures in the table where the output is a terminal, tried in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.photos import refresh
from clip_retrieval.photos.ask import open_photos
from clip_retrieval.photos.config import read_search_config

HALF_BLOCKS = "▀▄"


def read_all(descriptor: int) -> str:
    found = b""
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            data = b""
        if not data:
            return found.decode("utf-8", "replace")
        found += data


@pytest.mark.parametrize(("size", "is_shown"), [((30, 100), True), ((0, 0), False)])
def test_a_terminal_with_a_size_gets_thumbnails(
    tmp_path: Path,
    make_jpeg: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    is_shown: bool,
) -> None:
    monkeypatch.setattr(refresh, "FEW_READERS", 0)
    (tmp_path / "a.jpg").write_bytes(make_jpeg(1))
    open_photos(read_search_config({"clip_model": "hash:16?size=32"}, ("a dog", str(tmp_path))))
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.execve(
            sys.executable,
            [sys.executable, "-m", "clip_retrieval", "search", "a dog", str(tmp_path)],
            os.environ | {"TERM": "xterm-256color"},
        )
    shown = read_all(terminal)
    os.close(terminal)
    assert os.waitpid(process, 0)[1] == 0, shown
    assert "a.jpg" in shown
    assert any(letter in shown for letter in HALF_BLOCKS) == is_shown
