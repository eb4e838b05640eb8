"""The answers of `search`, and the lists of kept folders, for people."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from clip_retrieval.commands import Outcome
from clip_retrieval.commands.reports.console import Cell, load_widths, make_table, open_console, print_table, quoted
from clip_retrieval.photos.config import SearchConfig
from clip_retrieval.words import counted, in_bytes, printable

if TYPE_CHECKING:
    from clip_retrieval.photos.ask import PhotoAnswer, PhotoFolder
    from clip_retrieval.photos.folders import KeptList
    from clip_retrieval.photos.models import Settings

load_widths()  # here, since a thread imports this module during the search


def print_hits(result: PhotoAnswer, *, has_thumbnails: bool) -> None:
    """Print a table, with pictures if the output is a terminal."""
    console = open_console()
    for note in result.notes:
        console.print(f"note: {note}", style="yellow")
    print_table(hit_table(result, has_thumbnails=has_thumbnails))
    for sentence in result.answered.how:
        console.print(sentence, style="dim")


def hit_table(result: PhotoAnswer, *, has_thumbnails: bool) -> Table:
    thumbnail = open_thumbnails() if has_thumbnails and shows_pictures() else None
    rows = result.table.to_pylist()
    found = counted(len(rows), "hit") if rows else "no hit"
    columns = ["rank", "similarity", *(["picture"] if thumbnail else []), "path"]
    table = make_table(
        columns, numbers=("rank", "similarity"),
        title=f"{found} for {quoted(result.answered.query.text)} among {counted(result.about.pictures, 'picture')}",
    )  # fmt: skip
    for row, path in zip(rows, result.paths(), strict=True):
        pictures = [thumbnail(row)] if thumbnail else []
        table.add_row(str(row["rank"]), f"{row['similarity']:.4f}", *pictures, Cell(path, keeps_end=True))
    return table


def shows_pictures() -> bool:
    """Say whether the output is a terminal with a size, not a file, a pipe or an editor's window."""
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return False
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns > 0 and size.lines > 0  # textual-image divides by them


def open_thumbnails() -> Callable[[dict[str, Any]], Any]:
    from clip_retrieval.photos import thumbnails  # loads Pillow

    return thumbnails.open_thumbnails()


def hold_conversation(photos: PhotoFolder, config: SearchConfig) -> Outcome:
    """Answer line by line until there are no more lines."""
    from clip_retrieval.photos.interactive import Conversation, converse

    conversation = Conversation(
        photos,
        config.selection,
        show=lambda answered: print_hits(answered, has_thumbnails=config.output.thumbnails),
        say=lambda sentence: open_console().print(sentence),
    )
    if config.asked.words:
        conversation.ask(config.asked.words)
    converse(conversation)
    return Outcome({}, lambda _: None)


def print_kept(result: KeptList) -> None:
    """Print what is kept for each folder."""
    if not result.folders:
        click.echo("nothing is kept: no folder has been searched yet")
        return
    table = make_table(["folder", "model", "pictures", "size", "last used"], numbers=("pictures", "size"))
    for facts in result.folders:
        gone = "" if facts.is_there else " (missing now)"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.last_used))
        table.add_row(
            Cell(facts.folder + gone, keeps_end=True), Cell(facts.clip_model), f"{facts.pictures:,}",
            in_bytes(facts.bytes), used,
        )  # fmt: skip
    print_table(table)
    open_console().print(f"in {result.place}; search --forget FOLDER removes one")


def print_forgotten(result: Mapping[str, Any]) -> None:
    click.echo(printable(f"removed {in_bytes(result['bytes'])} that were kept for {result['folder']}"))


def print_setting(result: Settings) -> None:
    if result.clip_model is None:
        click.echo("new folders are embedded with the best model on this machine")
    else:
        click.echo(printable(f"new folders are embedded with {result.clip_model}"))
