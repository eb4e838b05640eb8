"""Commands that build, measure and change indices."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import CommandWithCommands, json_option, print_json
from clip_retrieval.index.config import IndexConfig, ScoreConfig
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


@index.command("score")
@config_options(ScoreConfig)
@json_option
def score(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure recall and time of an index that is there, and tune its search settings."""
    from clip_retrieval.index.report import print_scores
    from clip_retrieval.index.score import run_score

    result = run_score(build_config(ScoreConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_scores(result)
