"""The command that queries an index."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import json_option, print_json
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config


@click.command("filter")
@config_options(FilterConfig)
@json_option
def filter_command(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Find what a text, a picture or an embedding (.npy) asks for, and export it to OUTPUT_FOLDER."""
    from clip_retrieval.commands.reports.filter import print_result
    from clip_retrieval.filter.run import run_filter

    result = run_filter(build_config(FilterConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_result(result)
