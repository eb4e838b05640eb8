"""The whole of `models list`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_retrieval.encoder.catalogue import list_open_clip
from clip_retrieval.encoder.uri import FORMS, OPENAI_NAMES
from clip_retrieval.tools.report import open_console


@dataclass(frozen=True)
class ModelList:
    """Every name that --clip_model takes, but for files and hubs."""

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
    """Return the names; asks no network."""
    return ModelList(tuple(OPENAI_NAMES), ("demo",), list_open_clip(), FORMS)


def print_models(result: ModelList) -> None:
    """Print the names, and the forms of those that are not listed."""
    console = open_console()
    console.print("OpenAI:   " + "  ".join(result.openai))
    console.print("embedded: " + "  ".join(result.embedded))
    console.print("open_clip, as open_clip:ARCH/TAG:")
    for name, tags in result.open_clip.items():
        console.print(f"  {name}  {', '.join(tags) or '(no published weights)'}")
    console.print(f"a model is {result.forms}")
