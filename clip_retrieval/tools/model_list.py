"""The whole of `models list`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_retrieval.encoder.catalog import list_open_clip
from clip_retrieval.encoder.uri import FORMS, OPENAI_NAMES


@dataclass(frozen=True)
class ModelList:
    """Every name that --clip_model takes, except for files and hubs."""

    openai: tuple[str, ...]
    embedded: tuple[str, ...]
    open_clip: dict[str, list[str]]  # architecture to tags
    forms: str

    def to_json(self) -> dict[str, Any]:
        return {
            "openai": list(self.openai),
            "embedded": list(self.embedded),
            "open_clip": self.open_clip,
            "forms": self.forms,
        }


def list_models() -> ModelList:
    """Return the names, without network."""
    return ModelList(tuple(OPENAI_NAMES), ("demo",), list_open_clip(), FORMS)
