"""OpenAI's own files: where OpenAI's package, or the user, keeps the weights of its models."""

from __future__ import annotations

from clip_retrieval.cache_home import openai_folders
from clip_retrieval.encoder.uri import ModelName

OPENAI = "openai"  # open_clip's tag of OpenAI's weights


def find_openai(name: ModelName, cache: str | None) -> str | None:
    """Return the file of OpenAI's weights, if --clip_cache_path, CLIP_DIR or ~/.cache/clip has it."""
    file = openai_file(name)
    paths = [folder / file for folder in openai_folders(cache)] if file else []
    return next((str(path) for path in paths if path.is_file()), None)


def openai_file(name: ModelName) -> str | None:
    """Return OpenAI's name for the file of these weights; None for weights of others."""
    if name.weights != OPENAI:
        return None
    architecture = name.architecture.removesuffix("-quickgelu")
    return f"{architecture}{'px' if architecture.endswith('-336') else ''}.pt"
