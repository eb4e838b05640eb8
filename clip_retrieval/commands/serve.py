"""Commands that serve indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig, FrontConfig


@click.command()
@config_options(BackConfig)
def back(*, arguments: Sequence[object], **options: Mapping[str, object]) -> None:
    """Serve an index folder, or the folders of a json file, to clip-retrieval's clients and fronts, and under /v1."""
    config = build_config(BackConfig, given_options(options), arguments)
    from clip_retrieval.server.start import run_back

    run_back(config)


@click.command()
@config_options(FrontConfig)
def front(*, arguments: Sequence[object], **options: Mapping[str, object]) -> None:
    """Serve only the web page, for a server elsewhere; `back` serves it too, at its own address."""
    config = build_config(FrontConfig, given_options(options), arguments)
    from clip_retrieval.server.front import run_front

    run_front(config)
