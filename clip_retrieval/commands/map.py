"""The command that draws a map."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.map.config import MapConfig


@click.command("map")
@with_config(MapConfig)
def map_command(config: MapConfig) -> Outcome:
    """Lay out all pictures of an index by similarity, as one page that opens in any browser."""
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()
    from clip_retrieval.commands.reports.map import print_map
    from clip_retrieval.map.run import run_map

    return Outcome(run_map(config), print_map)
