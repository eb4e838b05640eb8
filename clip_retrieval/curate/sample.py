"""Random rows, with their metadata and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import SEED, Embedded, Floats, Ids, unit
from clip_retrieval.curate.page import figure
from clip_retrieval.curate.pictures import shown_columns
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.layout import CAPTION


@dataclass(frozen=True, eq=False)
class Sample:
    """Some random rows that have an embedding."""

    embedded: Embedded
    ids: Ids  # ascending
    rows: Floats  # unit length

    @cached_property
    def captions(self) -> list[str | None]:
        return self.values(CAPTION) if CAPTION in self.embedded.column_names else []

    def values(self, column: str) -> list[Any]:
        assert self.embedded.metadata is not None
        found: list[Any] = self.embedded.metadata.rows(self.ids, [column])[column].to_pylist()
        return found

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return the values of a column that are numbers; none if there is no such column."""
        if column not in self.embedded.column_names:
            return np.empty(0)
        return np.array([value for value in self.values(column) if isinstance(value, int | float)], np.float64)

    def figures(self, places: Ids, mark: str, numbers: NDArray[np.float32]) -> list[str]:
        """Return the pictures of rows by their places in the sample."""
        ids = self.ids[places]
        metadata, columns = self.embedded.metadata, shown_columns(self.embedded)
        rows = metadata.rows(ids, columns).to_pylist() if metadata is not None and columns else [{} for _ in ids]
        return [
            figure(row, mark.format(int(row_id)), float(number))
            for row, row_id, number in zip(rows, ids, numbers, strict=True)
        ]


def take_sample(embedded: Embedded, count: int) -> Sample:
    random = np.random.default_rng(SEED)
    ids = np.sort(random.choice(embedded.row_count, min(count, embedded.row_count), replace=False))
    rows = read_rows(embedded.vectors, ids)
    filled = rows.any(axis=1) & np.isfinite(rows).all(axis=1)
    return Sample(embedded, ids[filled], unit(rows[filled]))
