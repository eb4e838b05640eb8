"""The command that gives tools to language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.mcp_tools.config import McpConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config


@click.command()
@config_options(McpConfig)
def mcp(*, arguments: Sequence[object], **options: Mapping[str, object]) -> None:
    """Give a language model the tools search, more_like, describe and picture over an index folder (MCP, by stdio)."""
    config = build_config(McpConfig, given_options(options), arguments)
    need("mcp", "this command", ConfigError, extra="mcp")
    from clip_retrieval.mcp_tools.server import run_mcp

    run_mcp(config.index_folder, config.served)
