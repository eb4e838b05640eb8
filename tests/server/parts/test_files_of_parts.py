"""The PDF or video of a row comes from the part that has the row, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clip_retrieval.options import build_config
from clip_retrieval.server import files
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening
from tests.server.conftest import Client, open_client

DATA = bytes(range(256)) * 20


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "a film.mp4"
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def client(film: Path, tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> Iterator[Client]:
    """Give the client of a server before two parts, of which the second has a film and the first serves no file."""
    folder = tmp_path_factory.mktemp("parts")
    options = {"port": 0, "reload_seconds": 0}
    with ExitStack() as stack:
        urls = []
        for number, below in enumerate(((), (str(film.parent),))):
            paths = [f"{film}#t=1", f"{film.parent}/b.jpg"]
            metadata = pd.DataFrame({"image_path": paths, "caption": ["a", "b"]})
            index = write_index(folder / f"part{number}", metadata)
            config = build_config(BackConfig, {**options, "pictures_below": below}, [str(index)])
            urls.append(stack.enter_context(listening(config)).url)
        yield stack.enter_context(open_client("indices_paths.json", {"parts": urls, "part_timeout": 60.0}))


def test_a_file_of_a_part_is_served_whole_or_in_ranges(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 1000)
    (index,) = client.get("/v1/indices").json()["indices"]
    assert index["files"] is True
    path = f"/v1/files/{index['name']}/2"
    whole = client.get(path)
    assert (whole.status_code, whole.content) == (200, DATA)
    assert whole.headers["content-type"] == "video/mp4"
    piece = client.get(path, headers={"range": "bytes=100-299"})
    assert (piece.status_code, piece.content) == (206, DATA[100:300])
    assert piece.headers["content-range"] == f"bytes 100-299/{len(DATA)}"
    beyond = client.get(path, headers={"range": f"bytes={len(DATA)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(DATA)}")


@pytest.mark.parametrize("row", [0, 1, 3, 4])
def test_rows_without_a_file_that_is_served_have_none(client: Client, row: int) -> None:
    name: Any = client.get("/v1/indices").json()["indices"][0]["name"]
    answer = client.get(f"/v1/files/{name}/{row}")
    assert (answer.status_code, "message" in answer.json()) == (404, True)


def test_a_file_that_is_gone_meanwhile_is_no_longer_there(client: Client, film: Path) -> None:
    name: Any = client.get("/v1/indices").json()["indices"][0]["name"]
    film.rename(film.with_suffix(".away"))
    try:
        assert client.get(f"/v1/files/{name}/2").status_code == 404
    finally:
        film.with_suffix(".away").rename(film)
