"""Bounds: how they are written, and what plain faiss builds within them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.errors import ConfigError, IndexBuildError
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.options import parse_bytes

Rows = Callable[..., NDArray[np.float32]]


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4G", 4_000_000_000), ("4GB", 4_000_000_000), ("4g", 4_000_000_000), ("500MB", 500_000_000),
        ("500 MB", 500_000_000), (" 1.5K ", 1500), ("1T", 10**12), ("4Gi", 4 * 1024**3), ("500MiB", 500 * 1024**2),
        ("1KiB", 1024), ("123", 123), ("123B", 123),
    ],
)  # fmt: skip
def test_sizes_count_in_thousands_and_those_with_an_i_in_1024(written: str, size: int) -> None:
    assert parse_bytes(written) == size


@pytest.mark.parametrize("written", ["", "G", "-1G", "0", "0G", "4X", "4 G B", "1e9", "nan", "4GG", "١G"])
def test_what_is_no_size_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ConfigError, match="is not a size; write it as 500MB or 4G"):
        parse_bytes(written)


@pytest.mark.parametrize(("largest", "available"), [("2G", "1G"), ("32G", "16G")])
def test_autofaiss_builds_no_index_larger_than_the_memory(largest: str, available: str) -> None:
    with pytest.raises(ConfigError, match="more than current_memory_available"):
        IndexConfig(
            engine="autofaiss",
            embeddings_folder="a",
            index_folder="b",
            max_index_memory_usage=largest,
            current_memory_available=available,
        )
    assert IndexConfig(
        embeddings_folder="e", index_folder="i", max_index_memory_usage=largest, current_memory_available=available
    )


@pytest.mark.parametrize(
    ("largest", "kind"), [("300KB", "Flat"), ("170KB", "SQfp16"), ("80KB", "SQ8"), ("60KB", "SQ6"), ("45KB", "SQ4")]
)
def test_what_plain_faiss_builds_is_within_the_bound_and_finds_every_row(
    tmp_path: Path, unit_rows: Rows, write_run: Callable[..., Path], largest: str, kind: str
) -> None:
    rows = unit_rows(2000, 32)
    emb = write_run(tmp_path / "emb", [rows])
    built = clip_index(str(emb), str(tmp_path / "ix"), max_index_memory_usage=largest, engine="faiss")
    info: Any = built.infos["image"]
    assert kind in info["index_key"]
    assert (tmp_path / "ix" / "image.index").stat().st_size == info["size in bytes"] <= parse_bytes(largest)
    assert info["nb vectors"] == 2000


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 100])
def test_few_rows_under_a_tiny_bound_are_built_or_refused_in_a_sentence(
    tmp_path: Path, unit_rows: Rows, write_run: Callable[..., Path], rows: int
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(rows, 64)])
    built = []
    for largest in (100, 1000, 3000, 6000, 12_000, 24_000):
        try:
            clip_index(str(emb), str(tmp_path / "ix"), max_index_memory_usage=str(largest), engine="faiss")
        except IndexBuildError:
            continue
        built.append(largest)
        assert (tmp_path / "ix" / "image.index").stat().st_size <= largest
    assert 24_000 in built
    assert 100 not in built
