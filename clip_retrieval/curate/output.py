"""The folder of a result: whose it is, and the recipe that makes it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_retrieval.curate.embedded import Embedded
from clip_retrieval.curate.subset import EMBEDDINGS, OUTPUTS
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.output import FOREIGN, TARS_FOLDER, is_inside
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.layout import EMBEDDING_FOLDERS, SHARD, read_manifest
from clip_retrieval.options import to_json
from clip_retrieval.storage import Folder, check_writable
from clip_retrieval.version import __version__

RECIPE, GROUPS = "recipe.json", "groups.parquet"
COMMAND = "command"  # key of a recipe: which command wrote the folder


def claim_folder(folder: Folder, command: str, sources: Sequence[Embedded]) -> None:
    """Check that a result may go into a folder, and that nothing is lost by it.

    Raises ConfigError where files of our names are there that this command did not write, and where what is read lies
    in what would be replaced.
    """
    if any(folder.exists(name) for name in (*FOREIGN, *EMBEDDING_FOLDERS.values())):
        raise ConfigError(f"{folder.url} holds embeddings or an index; name another output folder")
    if folder.exists(RECIPE):
        if folder.read_json(RECIPE).get(COMMAND) != command:
            raise ConfigError(f"{folder.url} holds the result of another command; name another output folder")
    else:
        foreign = next((name for name in (GROUPS, *OUTPUTS, SHEET) if folder.exists(name)), None)
        if foreign is not None:
            raise ConfigError(f"{folder.url} has {foreign}, which no {command} wrote; name another output folder")
    for source in sources:
        inside = next((place for place in places_of(source) if is_inside(place, own_places(folder))), None)
        if inside is not None:
            raise ConfigError(f"{inside} is read, and would be replaced; name another output folder")
    check_writable(folder)


def own_places(folder: Folder) -> list[str]:
    return [f"{folder.place}/{name}" for name in (TARS_FOLDER, EMBEDDINGS)]


def places_of(source: Embedded) -> list[str]:
    """Return the folder and the tars that rows are of."""
    tars = source.column(SHARD).unique().drop_null().to_pylist() if SHARD in source.column_names else []
    return [source.folder.place, *map(str, tars)]


def write_recipe(folder: Folder, command: str, config: object, outcome: Mapping[str, Any]) -> None:
    """Write recipe.json: options, what they were applied to, and what came out; nothing yet while files are written."""
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
