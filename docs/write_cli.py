"""Write docs/cli.md from the commands' own --help; a test fails when the page is stale.

python docs/write_cli.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from clip_retrieval.cli import cli

SETTINGS = cli.context_settings
PAGE = Path(__file__).parent / "cli.md"
INTRODUCTION = """# The command line

Written by `make cli-docs` from `--help`. Flags can be spelled `--like_this` or `--like-this`, `--with value` or
`--with=value`; booleans take `True` or `False`, and `--flag` alone means True, `--noflag` False. `None` is None;
lists are written `0,1` or `[0,1]`. Required options may also be given by position, in the order of clip-retrieval 2.
"""


def render() -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION, *sections(["clip-retrieval"], cli)])


def sections(path: list[str], command: click.Command) -> Iterator[str]:
    """Yield the command's section, and those of the commands below it."""
    yield section(path, command)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in sorted(command.list_commands(context)):
            below = command.get_command(context, name)
            assert below is not None
            yield from sections([*path, name], below)


def section(path: list[str], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(path), terminal_width=110, **SETTINGS)
    return f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
