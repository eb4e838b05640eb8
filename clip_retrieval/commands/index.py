"""Commands that build, measure and change indices."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import CommandWithCommands, json_option, print_json
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config


@click.group(cls=CommandWithCommands)
@config_options(IndexConfig)
@json_option
def index(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build nearest-neighbour indices of an embeddings folder, within the memory given."""
    from clip_retrieval.index.build import build_indices
    from clip_retrieval.index.report import print_indices

    result = build_indices(build_config(IndexConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_indices(result)
