"""Graphs and lists of whole rows: planned, built in one go, and searched like any other index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.index import preview
from clip_retrieval.index.config import DistributionConfig, IndexConfig, TuningConfig
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index

Rows = NDArray[np.float32]
COUNT, DIM, EMPTY = 6_000, 64, 7
HURRY = 0.09  # milliseconds, in which looking into few lists finds little

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(unit_rows: Callable[..., Rows]) -> Rows:
    made = unit_rows(COUNT, DIM)
    made[EMPTY] = 0
    return made


@pytest.fixture
def embeddings(tmp_path: Path, rows: Rows, write_run: Callable[..., Path]) -> str:
    return str(write_run(tmp_path / "emb", [rows]))


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have previews try no kind on these rows, as on few: seconds, and the same kinds and sizes."""
    monkeypatch.setattr(preview, "ROWS_FOR_LISTS", COUNT)


def test_a_graph_is_built_in_one_go_and_never_answers_with_a_row_without_embedding(
    embeddings: str, rows: Rows, tmp_path: Path
) -> None:
    built = clip_index(embeddings, str(tmp_path / "ix"), max_index_query_time_ms=HURRY)

    info: Any = built.infos["image"]
    assert info["index_key"] == "HNSW32,Flat"
    assert info["size in bytes"] <= info["plan"]["index_bytes"] <= 1.05 * info["size in bytes"]
    index = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    assert index.row_count == COUNT
    for row in (0, 100, COUNT - 1):
        assert index.search(rows[row], 3).ids[0] == row
    assert EMPTY not in index.search(-rows[:20].mean(axis=0), COUNT).ids


def test_a_graph_takes_rows_that_are_added(
    embeddings: str, unit_rows: Callable[..., Rows], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    clip_index(embeddings, str(tmp_path / "ix"), max_index_query_time_ms=HURRY)
    more = unit_rows(30, DIM, seed=1)
    np.save(Path(embeddings) / "img_emb" / "img_emb_1.npy", more)
    write_run(tmp_path / "more", [more], label="more")
    (tmp_path / "more" / "metadata" / "metadata_0.parquet").rename(Path(embeddings) / "metadata" / "metadata_1.parquet")

    built = clip_index(embeddings, str(tmp_path / "ix"), update=True)

    assert built.infos["image"]["index_key"] == "HNSW32,Flat"
    index = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    assert index.search(more[11], 1).ids.tolist() == [COUNT + 11]


def test_lists_of_whole_rows_are_built_where_nothing_better_has_room(
    embeddings: str, rows: Rows, tmp_path: Path
) -> None:
    config = IndexConfig(embeddings_folder=embeddings, index_folder=str(tmp_path / "ix"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "ROWS_FOR_LISTS", COUNT)  # see `untried`
        sizes = {plan.key: plan.index_bytes for plan in preview.preview_indices(config).plans["image"]}

    bound = str(sizes["IVF128,SQfp16"])
    built = clip_index(embeddings, str(tmp_path / "ix"), max_index_memory_usage=bound, max_index_query_time_ms=0.15)

    assert built.infos["image"]["index_key"] == "IVF128,SQfp16"
    index = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    assert index.search(rows[100], 1).ids.tolist() == [100]
    assert faiss.extract_index_ivf(index.index).ntotal == COUNT - 1


@pytest.mark.usefixtures("untried")
def test_executors_make_no_graph(embeddings: str, tmp_path: Path) -> None:
    pytest.importorskip("pyspark")

    def kinds(distribution: DistributionConfig) -> set[str]:
        tuning = TuningConfig(max_index_query_time_ms=HURRY)
        folder = str(tmp_path / "ix")
        config = IndexConfig(
            embeddings_folder=embeddings, index_folder=folder, distribution=distribution, tuning=tuning
        )
        return {plan.kind for plan in preview.preview_indices(config).plans["image"]}

    assert "graph" in kinds(DistributionConfig())
    assert "graph" not in kinds(DistributionConfig(distributed="pyspark"))
