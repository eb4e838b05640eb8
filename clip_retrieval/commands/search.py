"""The command for a folder of pictures."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.photos.config import SearchConfig, read_search_config


@click.command()
@with_config(SearchConfig, read_search_config)
def search(config: SearchConfig) -> Outcome:
    """Find pictures of a FOLDER by what they show.

    The first search embeds the folder, later ones what has changed. What is kept lies in this machine's cache.
    """
    if config.upkeep.is_asked:
        return maintain(config)
    from clip_retrieval.commands.reports.search import hold_conversation, print_answer
    from clip_retrieval.photos.ask import open_photos

    photos = open_photos(config)
    if config.output.interactive:
        return hold_conversation(photos, config)
    answered = photos.ask(config.asked.words, config.selection)
    if config.output.open:
        from clip_retrieval.photos.sheet import with_sheet  # loads Pillow

        answered = with_sheet(answered, photos)
    return Outcome(answered, lambda result: print_answer(result, config.output))


def maintain(config: SearchConfig) -> Outcome:
    """Do what is asked instead of a search."""
    from clip_retrieval.commands.reports.search import print_forgotten, print_kept, print_setting
    from clip_retrieval.photos.folders import forget, list_kept
    from clip_retrieval.photos.models import write_setting

    if config.upkeep.forget is not None:
        return Outcome(forget(config.upkeep.forget), print_forgotten)
    if config.upkeep.use_model is not None:
        return Outcome(write_setting(config.upkeep.use_model), print_setting)
    return Outcome(list_kept(), print_kept)
