"""A revision of an embeddings folder, and what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clip_retrieval import revision
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.layout import EmbeddingsFolder


@dataclass(frozen=True, kw_only=True)
class Revised:
    """What a revision did, in samples."""

    kept: int = 0  # rows that stayed unchanged
    renamed: int = 0  # rows whose files have another path now
    embedded: int = 0  # rows appended or filled
    removed: int = 0  # rows emptied, because their files are gone or changed
    failing: int = 0  # samples, and whole tars, that were tried and cannot be used
    stats: Sequence[Stats] = ()

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("kept", "renamed", "embedded", "removed", "failing")}


class Revision(revision.Revision, EmbeddingsFolder):
    """An embeddings folder in its current state; what is published into it is staged until `commit`."""
