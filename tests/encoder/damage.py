"""Ways in which a file gets damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def zero_middle(path: Path) -> None:
    """Write zeros, as a crash leaves them; size and times stay."""
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(facts.st_size // 3)
        file.write(bytes(facts.st_size // 3))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def overwrite_middle(path: Path) -> None:
    """Write other bytes into the middle: two small numbers of half precision."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size * 3 // 4 // 4 * 4)
        file.write(b"\x12\x34\x12\x34")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def write_garbage(path: Path) -> None:
    path.write_bytes(b'{"a": ')


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def put_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


WAYS: list[Callable[[Path], None]] = [zero_middle, cut_off, write_garbage, make_empty, put_folder, Path.unlink]
