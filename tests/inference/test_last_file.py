"""A tar is opened once for the members that follow each other."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from clip_retrieval.blobs import BlobRef, open_url, read_blob
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.inference.readers.last_file import LastFile
from clip_retrieval.inference.readers.prepare import Wanted, prepare_chunk
from clip_retrieval.sources.types import Sample


def test_a_chunk_opens_its_tar_once_and_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_jpeg: Callable[[int], bytes]
) -> None:
    pictures, files = [make_jpeg(number) for number in range(3)], list[IO[bytes]]()
    (tmp_path / "a.tar").write_bytes(b"".join(pictures))
    ends = [0, *accumulate(map(len, pictures))]
    samples = [
        Sample(str(i), None, BlobRef(str(tmp_path / "a.tar"), ends[i], len(pictures[i])), None, None) for i in range(3)
    ]

    @contextmanager
    def noted(url: str) -> Iterator[IO[bytes]]:
        with open_url(url) as file:
            files.append(file)
            yield file

    last = LastFile()
    monkeypatch.setattr("clip_retrieval.inference.readers.last_file.open_url", noted)
    monkeypatch.setattr("clip_retrieval.inference.readers.prepare.LastFile", lambda: last)
    ready = Preprocess(8, (0.5,) * 3, (0.5,) * 3)
    wanted = Wanted(image=True, text=False, metadata=False, all_parts=False, preprocess=ready)

    chunk = prepare_chunk(samples, wanted, np.zeros((3, 8, 8, 3), np.uint8))

    assert [row.has_image for row in chunk.rows] == [True] * 3
    assert [file.closed for file in files] == [True]


def test_a_tar_stays_open_for_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "c.tar.gz"]
    for path in paths:
        content = bytes(range(100)) + path.name.encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    opened: list[str] = []

    def noted(url: str) -> AbstractContextManager[IO[bytes]]:
        opened.append(Path(url).name)
        return open_url(url)

    monkeypatch.setattr("clip_retrieval.inference.readers.last_file.open_url", noted)

    with closing(LastFile()) as last:
        for path in (paths[0], paths[0], paths[1], paths[2], paths[2], paths[0]):
            for offset in (90, 10):
                assert read_blob(BlobRef(str(path), offset, 5), last.open) == bytes(range(offset, offset + 5))
        assert opened == ["a.tar", "b.tar", *["c.tar.gz"] * 4, "a.tar"]  # what is compressed is not kept open
        with pytest.raises(FileNotFoundError):
            read_blob(BlobRef(str(tmp_path / "no.tar"), 0, 1), last.open)
        assert read_blob(BlobRef(str(paths[1]), 100, 5), last.open) == b"b.tar"
        assert last.opened is not None
        file = last.opened[1]

    assert file.closed
