"""The committed pages are what their sources give."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRONT, PAGES = ROOT / "front", ROOT / "clip_retrieval" / "pages"
LEAST_NODE = (20, 19)


def node_version() -> tuple[int, ...]:
    node = shutil.which("node")
    if node is None:
        return ()
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said)[:2])


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(node_version() < LEAST_NODE, reason="node 20.19 or later, which builds the pages, is not installed")
@pytest.mark.skipif(not (FRONT / "node_modules").exists(), reason="front/node_modules is missing: make front-check")
def test_the_pages_in_the_package_are_those_that_their_sources_give(tmp_path: Path) -> None:
    subprocess.run(["node", "build.js", str(tmp_path)], cwd=FRONT, check=True, capture_output=True, timeout=300)
    committed, built = read_files(PAGES), read_files(tmp_path)
    assert sorted(committed) == sorted(built), "stale: run `make front`"
    assert [name for name in built if built[name] != committed[name]] == [], "stale: run `make front`"
