"""The command that queries an index."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.filter.config import FilterConfig


@click.command("filter")
@with_config(FilterConfig)
def filter_command(config: FilterConfig) -> Outcome:
    """Find what a text, a picture or an embedding (.npy) asks for, and export it to OUTPUT_FOLDER."""
    from clip_retrieval.commands.reports.filter import print_result
    from clip_retrieval.filter.run import run_filter

    return Outcome(run_filter(config), print_result)
