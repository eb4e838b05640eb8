"""The command that queries an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from clip_retrieval.commands import Outcome, report_ahead, with_config
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.options import build_config
from clip_retrieval.process.imports import importing
from clip_retrieval.process.quick_start import starting_quickly

if TYPE_CHECKING:
    from clip_retrieval.filter.run import FilterResult


def read_config(values: Mapping[str, object], arguments: Sequence[object]) -> FilterConfig:
    """Return the config of options and arguments, with the options of a recipe if one is named."""
    if values.get("queries") is not None and "query" not in values:
        values = {**values, "query": ()}  # the queries are in a file, so the first argument is the output folder
    if values.get("recipe") is None:
        return build_config(FilterConfig, values, arguments)
    from clip_retrieval.filter.recipe import read_config

    return read_config(values, arguments)


@click.command("filter")
@with_config(FilterConfig, read_config)
def filter_command(config: FilterConfig) -> Outcome:
    """Find the rows nearest to a text, a picture or an embedding (.npy), and export them to OUTPUT_FOLDER."""
    with starting_quickly():
        from clip_retrieval.filter.opening import Opening

        opening = Opening(config.indice_folder, config.searcher, config.asked.words)
        from clip_retrieval.filter.run import run_filter

    written = ["pyarrow.parquet"] if "parquet" in config.write else []
    with importing("clip_retrieval.filter.export", *written, *report_ahead("filter")):
        result = run_filter(config, opening)

    def print_result(result: FilterResult) -> None:
        from clip_retrieval.commands.reports.filter import print_result

        print_result(result)

    return Outcome(result, print_result)
