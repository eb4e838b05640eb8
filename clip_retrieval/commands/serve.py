"""Commands that serve indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from clip_retrieval.commands import Outcome, json_option
from clip_retrieval.end2end.config import End2EndConfig
from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.mcp_tools.config import McpConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig, FrontConfig


@click.command()
@config_options(BackConfig)
def back(*, arguments: Sequence[object], **options: Mapping[str, object]) -> None:
    """Serve an index folder, or those of a json file, to clip-retrieval's clients and fronts, and under /v1."""
    config = build_config(BackConfig, given_options(options), arguments)
    from clip_retrieval.server.run import run_back

    run_back(config)


@click.command()
@config_options(FrontConfig)
def front(*, arguments: Sequence[object], **options: Mapping[str, object]) -> None:
    """Serve the web page alone, for a server elsewhere; `back` serves it too, at its own address."""
    config = build_config(FrontConfig, given_options(options), arguments)
    from clip_retrieval.server.front import run_front

    run_front(config)


@click.command()
@config_options(End2EndConfig)
@json_option
def end2end(*, arguments: Sequence[object], as_json: bool, **options: Mapping[str, object]) -> None:
    """Embed what is at the urls of URL_LIST, or in a table or folder, index it below OUTPUT_FOLDER, and serve it.

    What was stopped, or killed, goes on where it was when the same command is given again.
    """
    config = build_config(End2EndConfig, given_options(options), arguments)
    from clip_retrieval.commands.reports.end2end import print_result
    from clip_retrieval.end2end.run import back_config, run_end2end
    from clip_retrieval.server.run import run_back

    result = run_end2end(config)
    Outcome(result, print_result).show(as_json=as_json)
    if config.run_back:
        run_back(back_config(config, result))


@click.command()
@config_options(McpConfig)
def mcp(*, arguments: Sequence[object], **options: Mapping[str, object]) -> None:
    """Give a language model the tools search, more_like, describe and picture over an index folder (MCP, by stdio)."""
    config = build_config(McpConfig, given_options(options), arguments)
    need("mcp", "this command", ConfigError, extra="mcp")
    from clip_retrieval.mcp_tools.server import run_mcp

    run_mcp(config.index_folder, config.served)
