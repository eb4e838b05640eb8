"""The command that does everything once. Its options come from three other commands, whose imports `back` avoids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from clip_retrieval.commands import Outcome, json_option
from clip_retrieval.end2end.config import End2EndConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config


@click.command()
@config_options(End2EndConfig)
@json_option
def end2end(*, arguments: Sequence[object], as_json: bool, **options: Mapping[str, object]) -> None:
    """Embed the pictures at the urls of URL_LIST, or in a table or folder, index them below OUTPUT_FOLDER, and serve.

    If it was stopped or killed, run the same command again: it continues from there.
    """
    config = build_config(End2EndConfig, given_options(options), arguments)
    from clip_retrieval.commands.reports.end2end import print_result
    from clip_retrieval.end2end.run import back_config, run_end2end
    from clip_retrieval.server.start import run_back

    result = run_end2end(config)
    Outcome(result, print_result).show(as_json=as_json)
    if config.run_back:
        run_back(back_config(config, result))
