"""The outcome of `map`, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from clip_retrieval.words import counted, printable

if TYPE_CHECKING:
    from clip_retrieval.map.run import MapResult


def print_map(result: MapResult) -> None:
    """Print what the page shows, and each note."""
    shown = f"{counted(result.points, 'point')} and {counted(result.thumbnails, 'thumbnail')}"
    click.echo(f"{shown} in {printable(result.output)}")
    for note in result.notes:
        click.echo(printable(note), err=True)
