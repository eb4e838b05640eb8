"""The command that queries an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.filter.config import FilterConfig


def read_config(values: Mapping[str, object], arguments: Sequence[object]) -> FilterConfig:
    """Return the config of options and arguments, with those of a recipe where one is named."""
    from clip_retrieval.filter.recipe import read_config

    return read_config(values, arguments)


@click.command("filter")
@with_config(FilterConfig, read_config)
def filter_command(config: FilterConfig) -> Outcome:
    """Find what a text, a picture or an embedding (.npy) asks for, and export it to OUTPUT_FOLDER."""
    from clip_retrieval.commands.reports.filter import print_result
    from clip_retrieval.filter.run import run_filter

    return Outcome(run_filter(config), print_result)
