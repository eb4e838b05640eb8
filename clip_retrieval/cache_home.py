"""The caches of this machine: our own (converted models, folders of `search`), the hub's, and OpenAI's."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "CLIP_RETRIEVAL_CACHE"


def cache_home() -> Path:
    """Return the folder that CLIP_RETRIEVAL_CACHE names, else clip-retrieval below XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/clip-retrieval").expanduser()


def hub_repository(name: str) -> Path:
    """Return the folder of a repository such as ORG/NAME in Hugging Face's cache, whether or not it is there."""
    home = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    return Path(home).expanduser() / f"models--{name.replace('/', '--')}"


def openai_folders(named: str | None = None) -> list[Path]:
    """Return where OpenAI's weights may lie: a folder that is named, CLIP_DIR, and where OpenAI's package puts them."""
    places = (named, os.environ.get("CLIP_DIR"), "~/.cache/clip")
    return [Path(place).expanduser() for place in places if place]
