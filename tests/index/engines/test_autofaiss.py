"""autofaiss within bounds: a compressed index that keeps them, and refusals that say what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]


def test_a_memory_bound_gives_a_compressed_index_within_it(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    rows = unit_rows(10_050, 6)  # few dimensions: its training takes a quarter of what 16 take
    rows[::7] = 0
    emb = write_run(tmp_path / "emb", np.split(rows.astype(np.float16), 2))
    built = clip_index(
        str(emb),
        str(tmp_path / "ix"),
        max_index_memory_usage="160KB",
        current_memory_available="2G",
        nb_cores=1,
        engine="autofaiss",
    )
    info = built.infos["image"]
    assert info["index_key"] == "OPQ4_8,IVF512,PQ4x8"
    assert (tmp_path / "ix" / "image.index").stat().st_size <= 160_000
    found = [open_index(IndexFolder(str(tmp_path / "ix")), "image").search(row, 10).ids for row in rows[1:50:7]]
    assert all(start in ids for start, ids in zip(range(1, 50, 7), found, strict=True))
    assert not any((ids % 7 == 0).any() for ids in found)


@pytest.mark.parametrize("bounds", [("10KB", "2G"), ("1G", "1G"), ("1KB", "2KB")])
def test_a_refusal_of_autofaiss_is_one_sentence_with_advice(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, bounds: tuple[str, str]
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(10_500, 16)])
    with pytest.raises(IndexBuildError, match=r"--?max_index_memory_usage") as refused:
        clip_index(
            str(emb), str(tmp_path / "ix"), max_index_memory_usage=bounds[0], current_memory_available=bounds[1],
            nb_cores=1, engine="autofaiss",
        )  # fmt: skip
    assert "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "ix").rglob("*") if path.is_file()]


def test_an_index_that_came_out_too_large_is_refused_with_its_size(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(900, 16)])  # Flat, whatever the bound
    with pytest.raises(IndexBuildError, match=r"the index came out at [0-9,]+ bytes, above max_index_memory_usage"):
        clip_index(str(emb), str(tmp_path / "ix"), max_index_memory_usage="40KB", nb_cores=1, engine="autofaiss")
    assert not [path for path in (tmp_path / "ix").rglob("*") if path.is_file()]
