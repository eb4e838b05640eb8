"""Hits joined with their metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.metadata import open_metadata
from clip_retrieval.query.hits import join_metadata
from clip_retrieval.search.results import SearchResult
from clip_retrieval.storage import Folder

COLUMN_COUNT = 20_000  # minutes, where each column's name is compared with all others


def test_metadata_of_very_many_columns_is_joined_and_no_name_is_taken_twice(tmp_path: Path) -> None:
    names = ["id", "metadata.id", "picture", "rank", *(f"key{number}" for number in range(COLUMN_COUNT))]
    (tmp_path / "metadata").mkdir()
    pq.write_table(pa.table({name: [place] for place, name in enumerate(names)}), tmp_path / "metadata" / "0.parquet")
    found = SearchResult(np.array([0]), np.array([0.5], np.float32))

    metadata = open_metadata(Folder(str(tmp_path)))
    row = join_metadata(metadata, found).to_pylist()[0]

    assert len(row) == 3 + len(names)
    assert (row["id"], row["metadata.id"], row["metadata.metadata.id"]) == (0, 1, 0)
    assert (row["metadata.picture"], row["metadata.rank"], row["key7"]) == (2, 3, 11)
