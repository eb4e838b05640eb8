from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_jpegs(make_jpeg: Callable[[int], bytes]) -> Callable[[Path, int], Path]:
    """Give a function that fills a folder with only `count` pictures."""

    def write(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / f"{number:03d}.jpg").write_bytes(make_jpeg(number))
        return folder

    return write
