"""What building an index may use, and what the index is wanted for: below every engine."""

from __future__ import annotations

from dataclasses import dataclass

from clip_retrieval.embeddings.vectors import Vectors


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What building may use, and what the index is wanted for."""

    max_index_bytes: int
    available_bytes: int
    cores: int | None  # None: all
    wanted_recall: float | None = None
    max_query_ms: float = 10.0
    index_key: str | None = None  # key of faiss's index_factory; None: the planner chooses
    asked: tuple[Vectors, ...] = ()  # embeddings such as will be asked for; none: those that are indexed
    is_in_parts: bool = False  # True where executors build parts of the index
