"""What a command opens while it imports the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.errors import StorageError
from clip_retrieval.filter.opening import Opening
from clip_retrieval.layout import IndexFolder, read_manifest
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.searcher import open_searcher
from clip_retrieval.query.terms import Words

WriteIndex = Callable[..., Path]


@pytest.fixture
def index(tmp_path: Path, write_index: WriteIndex) -> Path:
    return write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat", "dog"]}))


def start(index: Path, text: str = "cat") -> Opening:
    return Opening(str(index), SearcherConfig(), [Words(text)])


def test_the_index_is_handed_over_once(index: Path) -> None:
    opening, manifest = start(index), read_manifest(IndexFolder(str(index)))
    opened = opening.take_index(manifest)
    assert opened is not None
    assert opened.row_count == 2
    assert opening.take_index(manifest) is None


def test_an_index_of_an_earlier_build_is_opened_anew(index: Path) -> None:
    opening = start(index)
    assert opening.take_index({"format_version": 1}) is None
    searcher = open_searcher(IndexFolder(str(index)), SearcherConfig(), ahead=opening)
    assert searcher.index.row_count == 2


def test_the_model_of_a_text_is_handed_over_once_and_none_where_another_is_wanted(index: Path) -> None:
    opening = start(index)
    assert opening.chosen is not None
    assert opening.take_model(EncoderConfig(clip_model="hash:8")) is None
    assert opening.take_model(opening.chosen) is not None
    assert opening.take_model(opening.chosen) is None
    row = Opening(str(index), SearcherConfig(), [Words("", row=1)])
    assert row.chosen is None


def test_what_cannot_be_opened_is_told_of_where_it_is_asked_for(index: Path) -> None:
    (index / "image.index").write_bytes(b"no index")
    opening = start(index)
    with pytest.raises(StorageError, match=r"image\.index"):
        open_searcher(IndexFolder(str(index)), SearcherConfig(), ahead=opening)
