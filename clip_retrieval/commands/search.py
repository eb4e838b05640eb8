"""The command for a folder of pictures."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from clip_retrieval.commands import Outcome, report_ahead, wants_json, with_config
from clip_retrieval.errors import ConfigError
from clip_retrieval.photos.config import OutputConfig, SearchConfig, read_search_config
from clip_retrieval.process.imports import importing
from clip_retrieval.process.quick_start import starting_quickly
from clip_retrieval.words import printable

if TYPE_CHECKING:
    from clip_retrieval.photos.ask import PhotoAnswer


@click.command()
@with_config(SearchConfig, read_search_config)
def search(config: SearchConfig) -> Outcome:
    """Find pictures in a FOLDER by what they show.

    The first search embeds the folder, later ones what has changed. The embeddings are kept in this machine's cache.
    """
    if config.upkeep.is_asked:
        return maintain(config)
    if config.output.interactive and wants_json():
        raise ConfigError("--interactive answers with tables; leave out --json")
    with starting_quickly():
        from clip_retrieval.photos.seen import see

        seen = see(config)
        opening = seen.start_opening(config)
        from clip_retrieval.photos.ask import open_photos

    if config.output.interactive:
        from clip_retrieval.commands.reports.search import hold_conversation

        return hold_conversation(open_photos(config, seen), config)
    with importing(*(report_ahead("search") if config.output.is_table else [])):
        photos = open_photos(config, seen, opening)
        answered = photos.ask(config.asked.words, config.selection)
    if config.output.open:
        from clip_retrieval.photos.sheet import with_sheet  # loads Pillow

        answered = with_sheet(answered, photos)
    return Outcome(answered, lambda result: print_answer(result, config.output))


def print_answer(result: PhotoAnswer, output: OutputConfig) -> None:
    """Print the hits in the form of the options, and open the page if asked for."""
    if output.is_table:
        from clip_retrieval.commands.reports.search import print_hits

        print_hits(result, has_thumbnails=output.thumbnails)
    else:
        print_paths(result, is_null=output.null)
    if result.sheet is not None and click.launch(result.sheet):
        click.echo(f"no browser could be started; the page is {printable(result.sheet)}", err=True)


def print_paths(result: PhotoAnswer, *, is_null: bool) -> None:
    """Write the paths as on disk, which may not be UTF-8; for a terminal, control characters are removed."""
    is_seen = sys.stdout.isatty() and not is_null
    stream = sys.stdout.buffer
    for path in result.paths():
        stream.write((printable(path).encode() if is_seen else os.fsencode(path)) + (b"\0" if is_null else b"\n"))
    stream.flush()
    for note in result.notes:
        click.echo(printable(note), err=True)


def maintain(config: SearchConfig) -> Outcome:
    """Do the maintenance that is asked for instead of a search."""
    from clip_retrieval.commands.reports.search import print_forgotten, print_kept, print_setting
    from clip_retrieval.photos.folders import forget, list_kept
    from clip_retrieval.photos.models import write_setting

    if config.upkeep.forget is not None:
        return Outcome(forget(config.upkeep.forget), print_forgotten)
    if config.upkeep.use_model is not None:
        return Outcome(write_setting(config.upkeep.use_model), print_setting)
    return Outcome(list_kept(), print_kept)
