"""The bounds of building an index, and its target; shared by all engines."""

from __future__ import annotations

from dataclasses import dataclass

from clip_retrieval.embeddings.vectors import Vectors


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of building, and the target of searches."""

    max_index_bytes: int
    available_bytes: int
    cores: int | None  # None: all
    wanted_recall: float | None = None
    max_query_ms: float = 10.0
    index_key: str | None = None  # key of faiss's index_factory; None: the planner chooses
    asked: tuple[Vectors, ...] = ()  # embeddings like those of future queries; empty: the indexed ones
    plan_sample: int = 0  # rows of the embeddings on which plans are tried before large builds; 0: none
    is_in_parts: bool = False  # True if executors build parts of the index
