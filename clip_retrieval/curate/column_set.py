"""A set of columns: which labels and names it may have, and whether its folder is ours."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa

from clip_retrieval.curate.columns import ColumnPart, HeadScores
from clip_retrieval.curate.config import LabelConfig
from clip_retrieval.curate.embedded import Embedded, identity
from clip_retrieval.curate.heads import Head
from clip_retrieval.curate.output import RECIPE, about_folder, compare_options
from clip_retrieval.errors import ConfigError
from clip_retrieval.layout import COLUMNS_FOLDER
from clip_retrieval.metadata import other_columns
from clip_retrieval.metadata.joined import is_stale
from clip_retrieval.options import to_json
from clip_retrieval.version import __version__


def check_labels(given: list[str]) -> list[str]:
    """Return the labels; raises ConfigError if there is nothing to choose among."""
    labels = [label.strip() for label in given]
    if not all(labels):
        raise ConfigError("a label is empty; write what it stands for, such as --label 'a photo'")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"the label {twice!r} is given twice; leave one out")
    if len(labels) < 2:
        raise ConfigError(
            "labels need two or more to choose among; add one for the rest, such as --label 'something else'"
        )
    return labels


def join_schemas(parts: list[ColumnPart], name: str) -> pa.Schema:
    heads = [column for part in parts if isinstance(part, HeadScores) for column in part.head.columns]
    schema = pa.schema([field for part in parts for field in part.schema])
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two columns would be called {twice}; {remedy(twice, heads, name)}")
    return schema


def check_names(embedded: Embedded, config: LabelConfig, schema: pa.Schema, heads: list[Head]) -> None:
    """Raise ConfigError if the metadata or another set already has a column that would be written."""
    taken = other_columns(embedded.folder, config.name)
    twice = next((column for column in schema.names if column in taken), None)
    if twice is not None:
        raise ConfigError(
            f"{embedded.folder.url} has a column {twice} already, in {taken[twice]}; "
            f"{remedy(twice, [column for head in heads for column in head.columns], config.name, taken[twice])}"
        )


def remedy(column: str, of_heads: list[str], name: str, place: str | None = None) -> str:
    """Return what to do when a column's name is taken: `--name` helps for the columns that are named after it."""
    if column in of_heads:
        return "rename the head's file, which the column is named after"
    if column == name or column.startswith((f"{name}_", f"{name}.")):
        return "give another --name"
    if place is None or not place.startswith(f"{COLUMNS_FOLDER}/"):
        return "leave it out"
    there = place.removeprefix(f"{COLUMNS_FOLDER}/")
    return f"give --name {there} --overwrite to make that set again, or remove that folder"


def claim_set(config: LabelConfig, embedded: Embedded) -> None:
    """Remove the set's files if they are of other rows, and write the recipe of the new ones.

    Raises ConfigError if `label` did not write them, or wrote them with other options and `overwrite` was not given.
    """
    place = f"{COLUMNS_FOLDER}/{config.name}"
    options = json.loads(json.dumps(to_json(replace(config, index_folder=None, overwrite=False))))
    recipe = {
        "version": __version__,
        "command": "label",
        "options": options,
        "embeddings": about_folder(embedded.folder, embedded.row_count),
        "files": identity(embedded.vectors),
    }
    name = f"{place}/{RECIPE}"
    if embedded.folder.exists(name):
        there = embedded.folder.read_json(name)
        if there == json.loads(json.dumps(recipe)) and not is_stale(embedded.folder, config.name):
            return
        others = compare_options(there.get("options", {}), options)
        if others and not config.overwrite:
            raise ConfigError(
                f"{embedded.folder.path(place)} holds columns of other options ({'; '.join(others)}); give another "
                "--name, or --overwrite to replace them"
            )
    if embedded.folder.exists(place) and not embedded.folder.exists(name):
        raise ConfigError(f"{embedded.folder.path(place)} is there, and no `label` wrote it; give --name")
    embedded.folder.remove(place)
    embedded.folder.write_json(name, recipe)
