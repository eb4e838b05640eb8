"""Pictures in the table where the output is a terminal, tried in a pseudo-terminal."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
from PIL import Image

from clip_retrieval.photos import refresh
from clip_retrieval.photos.ask import open_photos
from clip_retrieval.photos.config import read_search_config

HALF_BLOCKS = "▀▄"


ASKED = re.compile(
    rb"\x1b\[c|\x1b\[16t|\x1b_G[^\x1b]*a=q[^\x1b]*\x1b\\"
)  # attributes, size of a cell, kitty's protocol


def answer_question(question: bytes, protocol: str) -> bytes:
    """Return what a terminal that has kitty's protocol, or sixel, answers to a program that asks what it can show."""
    if question == b"\x1b[16t":
        return b"\x1b[6;20;10t"
    if question == b"\x1b[c":
        return b"\x1b[?62;4c" if protocol == "sixel" else b"\x1b[?62c"
    number = re.search(rb"i=(\d+)", question)
    return b"\x1b_Gi=%s;OK\x1b\\" % number[1] if number and protocol == "kitty" else b""


def read_all(descriptor: int, protocol: str = "") -> bytes:
    """Read what a program prints until it ends, and answer what it asks the terminal if that has a protocol."""
    found, answered = b"", 0
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            data = b""
        if not data:
            return found
        found += data
        for asked in ASKED.finditer(found, answered):
            answered = asked.end()
            if protocol:
                os.write(descriptor, answer_question(asked[0], protocol))


def search_in_terminal(folder: Path, size: tuple[int, int] = (30, 100), protocol: str = "") -> bytes:
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.execve(
            sys.executable,
            [sys.executable, "-m", "clip_retrieval", "search", "a dog", str(folder)],
            os.environ | {"TERM": "xterm-256color"},
        )
    shown = read_all(terminal, protocol)
    os.close(terminal)
    assert os.waitpid(process, 0)[1] == 0, shown
    return shown


@pytest.fixture
def red_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(refresh, "FEW_READERS", 0)
    Image.new("RGB", (64, 64), (250, 10, 10)).save(tmp_path / "a.png")
    open_photos(read_search_config({"clip_model": "hash:16?size=32"}, ("a dog", str(tmp_path))))
    return tmp_path


@pytest.mark.parametrize(("size", "is_shown"), [((30, 100), True), ((0, 0), False)])
def test_a_terminal_with_a_size_gets_thumbnails(red_folder: Path, size: tuple[int, int], is_shown: bool) -> None:
    shown = search_in_terminal(red_folder, size).decode()
    assert "a.png" in shown
    assert any(letter in shown for letter in HALF_BLOCKS) == is_shown


def test_a_terminal_with_kitty_s_protocol_gets_the_picture_itself(red_folder: Path) -> None:
    shown = search_in_terminal(red_folder, protocol="kitty")
    sent = re.findall(rb"\x1b_G([^;]*f=100[^;]*|[^;]*m=0[^;]*);([^\x1b]*)\x1b\\", shown)
    picture = Image.open(io.BytesIO(base64.b64decode(b"".join(data for _, data in sent))))
    assert picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2)) == (250, 10, 10)
    assert not any(letter in shown.decode() for letter in HALF_BLOCKS)


def test_a_terminal_with_sixel_gets_the_picture_in_its_colors(red_folder: Path) -> None:
    shown = search_in_terminal(red_folder, protocol="sixel")
    (sixels,) = re.findall(rb"\x1bP[0-9;]*q(.*?)\x1b\\", shown, re.DOTALL)
    colors = re.findall(rb"#\d+;2;(\d+);(\d+);(\d+)", sixels)
    assert any(int(red) > 90 and int(green) < 10 and int(blue) < 10 for red, green, blue in colors)  # percent
