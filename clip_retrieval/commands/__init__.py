"""The commands: options to configs, results to people or, with --json, to programs."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.words import json_text

json_option = click.option("--json", "as_json", is_flag=True, help="Print the outcome as json.")


def print_json(value: object) -> None:
    """Print a value as json, with nothing in it that a terminal obeys."""
    click.echo(json_text(value))


class CommandWithCommands(click.Group):
    """A command that does its own work, unless its first word names one of the commands below it."""

    allow_interspersed_args = True  # options may follow the folders, as with any command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            ctx.args = args
            return []
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.args:
            return click.Command.invoke(self, ctx)
        name, *rest = ctx.args
        command = self.commands[name]
        with command.make_context(name, rest, parent=ctx) as below:
            return command.invoke(below)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return click.Command.collect_usage_pieces(self, ctx)
