"""The caches of this machine: our own (models and their checks, folders of `search`), the hub's, and OpenAI's."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "CLIP_RETRIEVAL_CACHE"


def cache_home() -> Path:
    """Return the folder that CLIP_RETRIEVAL_CACHE names, else clip-retrieval below XDG_CACHE_HOME or ~/.cache."""
    return first_set(CACHE_VARIABLE) or user_cache() / "clip-retrieval"


def hub_repository(name: str, named: str | None = None) -> Path:
    """Return the folder of a repository such as ORG/NAME in a hub cache, whether or not it is there.

    The cache is the folder that is named, else the one that huggingface_hub takes.
    """
    folder = Path(named).expanduser() if named else first_set("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    folder = folder or (first_set("HF_HOME") or user_cache() / "huggingface") / "hub"
    return folder / f"models--{name.replace('/', '--')}"


def openai_folders(named: str | None = None) -> list[Path]:
    """Return where OpenAI's weights may lie: a folder that is named, CLIP_DIR, and where OpenAI's package puts them."""
    places = (named, os.environ.get("CLIP_DIR"), "~/.cache/clip")
    return [Path(place).expanduser() for place in places if place]


def user_cache() -> Path:
    return first_set("XDG_CACHE_HOME") or Path("~/.cache").expanduser()


def first_set(*variables: str) -> Path | None:
    """Return the path in the first environment variable that holds one."""
    path = next((value for name in variables if (value := os.environ.get(name))), None)
    return None if path is None else Path(path).expanduser()
