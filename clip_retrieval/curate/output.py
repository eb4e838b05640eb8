"""The folder of a result: whose it is, and the recipe that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.output import FOREIGN
from clip_retrieval.layout import EMBEDDING_FOLDERS, read_manifest
from clip_retrieval.options import to_json
from clip_retrieval.storage import Folder, check_writable
from clip_retrieval.version import __version__

RECIPE = "recipe.json"
COMMAND = "command"  # key of a recipe: which command wrote the folder


def claim_folder(folder: Folder, command: str) -> None:
    """Check that a result may go into a folder: raises ConfigError where another one, or something else, is there."""
    if any(folder.exists(name) for name in (*FOREIGN, *EMBEDDING_FOLDERS.values())):
        raise ConfigError(f"{folder.url} holds embeddings or an index; name another output folder")
    if folder.exists(RECIPE):
        said = folder.read_json(RECIPE).get(COMMAND)
        if said != command:
            raise ConfigError(f"{folder.url} holds the result of another command; name another output folder")
    check_writable(folder)


def write_recipe(folder: Folder, command: str, config: object, outcome: Mapping[str, Any]) -> None:
    """Write recipe.json, the last file of a result: options, what they were applied to, and what came out."""
    folder.write_json(
        RECIPE, {"version": __version__, COMMAND: command, "options": to_json(config), "outcome": dict(outcome)}
    )


def about_folder(folder: Folder, row_count: int) -> dict[str, Any]:
    """Return what tells one embeddings folder from another."""
    encoder = (read_manifest(folder) or {}).get("encoder") or {}
    return {
        "place": folder.place,
        "rows": row_count,
        "model": encoder.get("clip_model"),
        "model_fingerprint": encoder.get("fingerprint"),
    }
