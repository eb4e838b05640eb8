"""recipe.json: how a selection was made, to make it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from clip_retrieval.blobs import BlobRef, read_blob
from clip_retrieval.errors import ConfigError, one_line
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.json_files import parse_json
from clip_retrieval.options import Flag, build_config, flags_of
from clip_retrieval.paths import local_path
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.storage import Folder, absolute
from clip_retrieval.version import __version__

RECIPE = "recipe.json"
TERMS = ("query", "minus", "like", "weight", "queries")
FOLDERS = ("indice_folder", "refine_from")
OF_THE_MACHINE = ("device", "clip_cache_path", "memory_map")  # change no selection


class Recipe(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A selection: options of filter by name, and the index and model that answered."""

    version: str  # of clip-retrieval
    index_fingerprint: str
    model: str | None
    model_fingerprint: str | None
    options: dict[str, Any]
    queries_digest: str | None = None  # of the file that --queries named


def recorded_flags() -> Iterator[Flag]:
    """Yield the options that affect a selection."""
    for flag in flags_of(FilterConfig):
        is_shared = flag.path[0] in ("asked", "selection", "searcher") and flag.name not in OF_THE_MACHINE
        if is_shared or flag.name in ("queries", *FOLDERS):
            yield flag


def write_recipe(folder: Folder, config: FilterConfig, searcher: Searcher) -> None:
    """Write recipe.json: the options that differ from their defaults; folders and files as absolute paths."""
    options: dict[str, Any] = {}
    for flag in recorded_flags():
        value: Any = config
        for name in flag.path:
            value = getattr(value, name)
        if value != flag.default:
            options[flag.name] = whole_path(flag.name, value)
    encoder = searcher.expected or {}
    recipe = Recipe(
        version=__version__,
        index_fingerprint=searcher.fingerprint,
        model=encoder.get("clip_model"),
        model_fingerprint=encoder.get("fingerprint"),
        options=options,
        queries_digest=digest_queries(config),
    )
    folder.write_json(RECIPE, msgspec.to_builtins(recipe))


def digest_queries(config: FilterConfig) -> str | None:
    """Return a digest of the file of queries; None if there is none, or if it has been removed meanwhile."""
    try:
        data = None if config.queries is None else read_blob(BlobRef(config.queries))
    except (OSError, ValueError):
        return None
    return None if data is None else hashlib.sha256(data).hexdigest()[:16]


def whole_path(name: str, value: Any) -> Any:
    """Return the value of an option in a form that is valid in every working folder."""
    if name in FOLDERS:
        return Folder(value).place
    path = local_path(value) if name == "queries" else None
    return value if path is None else absolute(path)


def read_recipe(path: str) -> Recipe:
    """Return the recipe in a file; raises ConfigError that names the file."""
    try:
        data = read_blob(BlobRef(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise ConfigError(f"the recipe {path} cannot be read: {reason}") from error
    recipe = parse_json(data, Recipe, path, ConfigError)
    known = {flag.name for flag in recorded_flags()}
    unknown = [name for name in recipe.options if name not in known]
    if unknown:
        raise ConfigError(f"{path} cannot be used: {unknown[0]} is not an option of a recipe ({', '.join(known)})")
    return recipe


def read_config(values: Mapping[str, object], arguments: Sequence[object] = ()) -> FilterConfig:
    """Return the config of the given options; options of --recipe FILE fill in the rest.

    With a recipe, the first argument is the output folder, and the next the index folder. Raises ConfigError.
    """
    if values.get("recipe") is None:
        return build_config(FilterConfig, values, arguments)
    names = {name: flag.name for flag in flags_of(FilterConfig) for name in (flag.name, *flag.aliases)}
    given = {names.get(name, name) for name in values}
    kept = read_recipe(str(values["recipe"])).options
    if given & {"query", "queries"}:
        kept = {name: value for name, value in kept.items() if name not in TERMS}
    if len(arguments) > 1:
        kept = {name: value for name, value in kept.items() if name != "indice_folder"}
    kept = {name: value for name, value in kept.items() if name not in given}
    query = {} if "query" in given else {"query": ()}
    return build_config(FilterConfig, {**query, **kept, **values}, arguments)


def compare_recipe(config: FilterConfig, searcher: Searcher) -> list[str]:
    """Return sentences on what differs from the given recipe."""
    if config.recipe is None:
        return []
    recipe = read_recipe(config.recipe)
    found = []
    if recipe.index_fingerprint != searcher.fingerprint:
        found.append(f"another index (fingerprint {recipe.index_fingerprint} -> {searcher.fingerprint})")
    if recipe.queries_digest and config.queries and recipe.queries_digest != digest_queries(config):
        found.append(f"another content of {config.queries}")
    return [f"the recipe was made with {what}: this selection may differ from that one" for what in found]
