"""Hits compared once more by the embeddings that are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.errors import QueryError
from clip_retrieval.layout import EmbeddingsFolder, IndexFolder
from clip_retrieval.search.index import open_index
from clip_retrieval.search.refine import open_stored, search_stored

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]


def test_a_coarse_index_finds_what_exact_search_does(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    rows = unit_rows(2000, 32)
    emb = write_run(tmp_path / "emb", np.split(rows, [700]))
    clip_index(str(emb), str(tmp_path / "ix"), max_index_memory_usage="45KB")
    index = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    stored = open_stored(EmbeddingsFolder(str(emb)), "image", index)
    coarse, fine = 0, 0
    for query in unit_rows(30, 32, seed=7):
        truth = set(np.argsort(-(rows @ query))[:10].tolist())
        hits = search_stored(index.search, stored, query, 10)
        np.testing.assert_allclose(hits.scores, rows[hits.ids] @ query, atol=2e-3)
        assert (np.diff(hits.scores) <= 0).all()
        fine += len(truth & set(hits.ids.tolist()))
        coarse += len(truth & set(index.search(query, 10).ids.tolist()))
    assert coarse < 290 <= fine


def test_embeddings_of_another_run_are_refused(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb, other = (write_run(tmp_path / name, [unit_rows(count)]) for name, count in (("emb", 20), ("other", 21)))
    clip_index(str(emb), str(tmp_path / "ix"))
    index = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    with pytest.raises(QueryError, match=r"other has 21 x 16 image embeddings, the index has 20 x 16; name the"):
        open_stored(EmbeddingsFolder(str(other)), "image", index)
    with pytest.raises(QueryError, match="holds no text embeddings"):
        open_stored(EmbeddingsFolder(str(emb)), "text", index)
