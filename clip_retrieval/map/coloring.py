"""A metadata column as colors: its most frequent values, or a scale for numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError
from clip_retrieval.map.rows import BLOCK_ROWS, Rows
from clip_retrieval.words import shorten

MOST_VALUES = 11  # with colors of their own; all others share one
MISSING = 255
MOST_LETTERS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Coloring:
    """The color of each point, and what the colors mean."""

    column: str
    codes: NDArray[np.uint8]  # [n]: the place of a value in `names`, or 0 to 254 on a scale; 255: no value
    names: list[str] | None = None
    low: float = 0.0
    high: float = 0.0

    def legend(self) -> dict[str, Any]:
        counts = np.bincount(self.codes, minlength=MISSING + 1).tolist()
        about: dict[str, Any] = {"column": self.column, "missing": counts[MISSING]}
        if self.names is None:
            return about | {"low": self.low, "high": self.high}
        return about | {"names": self.names, "counts": counts[: len(self.names)]}


def read_coloring(rows: Rows, ids: NDArray[np.int64], column: str) -> Coloring:
    """Read a column. Raises ConfigError if it does not exist."""
    known = [] if rows.metadata is None else rows.metadata.schema.names
    if rows.metadata is None or column not in known:
        there = f"it has {', '.join(sorted(known))}" if known else "it has no metadata"
        raise ConfigError(f"{rows.url} has no column {column} to color by; {there}")
    kind = rows.metadata.schema.field(column).type
    blocks = [
        rows.metadata.rows(ids[start : start + BLOCK_ROWS], [column]).column(column)
        for start in range(0, len(ids), BLOCK_ROWS)
    ]
    values = [simple(value) for block in blocks for value in block.to_pylist()]
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and len(set(values)) > MOST_VALUES + 1:
        return scale(column, values)
    return classify(column, values)


def simple(value: Any) -> Any:
    """Return the value that colors a point: the first of a list, None for NaN and for empty values."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or value == "" or value != value else value


def scale(column: str, values: list[Any]) -> Coloring:
    """Return numbers as 0 to 254, from their first to their last percentile."""
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    is_there = np.isfinite(numbers)
    low, high = (float(bound) for bound in np.percentile(numbers[is_there], [1, 99]))
    with np.errstate(invalid="ignore"):
        codes = np.clip(np.round((numbers - low) / ((high - low) or 1) * (MISSING - 1)), 0, MISSING - 1)
    return Coloring(column=column, codes=np.where(is_there, codes, MISSING).astype(np.uint8), low=low, high=high)


def classify(column: str, values: list[Any]) -> Coloring:
    """Return the most frequent values, the most frequent first; all other values share the last place."""
    texts = [None if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    names = ordered if len(ordered) <= MOST_VALUES + 1 else ordered[:MOST_VALUES]
    codes = {name: place for place, name in enumerate(names)}
    shown = [shorten(name, MOST_LETTERS) for name in names]
    if len(names) < len(ordered):
        shown.append(f"{len(ordered) - len(names):,} others")
    given = [MISSING if text is None else codes.get(text, MOST_VALUES) for text in texts]
    return Coloring(column=column, codes=np.array(given, np.uint8), names=shown)
