"""A named pipe or a folder in place of a file: each format says so and goes on without waiting for it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.errors import SourceError
from clip_retrieval.sources import open_source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure

SECONDS = 10  # after which a reader that waits, as it should not, meets the end of the pipe
FORMATS = [
    ("webdataset", "x.tar"),
    ("archive", "x.zip"),
    ("parquet", "x.parquet"),
    ("urls", "x.csv"),
    ("urls", "x.jsonl"),
]


def make_pipe(path: Path) -> None:
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)
    timer = threading.Timer(SECONDS, os.close, [held])
    timer.daemon = True
    timer.start()


@pytest.mark.parametrize(("make", "kind"), [(make_pipe, "a pipe, a socket or a device"), (Path.mkdir, "a folder")])
@pytest.mark.parametrize(("input_format", "name"), [*FORMATS, ("datasets", "x.arrow")])
def test_what_is_no_file_is_named(
    tmp_path: Path, input_format: str, name: str, make: Callable[[Path], object], kind: str
) -> None:
    make(tmp_path / name)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    place = tmp_path if input_format == "datasets" else f"{tmp_path}/[x].*"

    try:
        source = open_source(SourceConfig(input_dataset=str(place), input_format=input_format), "out")  # type: ignore[arg-type]
    except SourceError as error:
        told = str(error)
    else:
        [failure] = source.read(0, len(source.units))
        assert isinstance(failure, Failure)
        assert (failure.shard, failure.reason) == (str(tmp_path / name), "unreadable")
        told = failure.detail

    assert f"{tmp_path / name} is {kind}, not a file" in told
