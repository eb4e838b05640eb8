"""The commands: options to configs; results for people or, with --json, for programs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import click

from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config
from clip_retrieval.process.standard_streams import tell_unprinted
from clip_retrieval.words import json_text

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print the outcome as json.")


class Result(Protocol):
    """Protocol of results: what the function behind a command returns."""

    def to_json(self) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    """What a command shows: its result as json, or for people by a function that prints it."""

    result: Result | Mapping[str, Any]
    report: Callable[[Any], None]
    exit_code: int = 0

    def show(self, *, as_json: bool) -> None:
        """Print the result, and end the command with its exit code; 1 if it cannot be printed."""
        context = click.get_current_context(silent=True)
        if context is not None and isinstance(context.obj, list):
            context.obj.append(self)
        try:
            self.print(as_json=as_json)
            sys.stdout.flush()
        except OSError as error:
            tell_unprinted(error)
            click.get_current_context().exit(1)
        if self.exit_code:
            click.get_current_context().exit(self.exit_code)

    def print(self, *, as_json: bool) -> None:
        if as_json:
            value = self.result if isinstance(self.result, Mapping) else self.result.to_json()
            click.echo(json_text(value))  # control characters are escaped
        else:
            self.report(self.result)


def report_ahead(name: str) -> list[str]:
    """Return the module of a report, to import while the command works; none if --json was given."""
    return [] if wants_json() else [f"clip_retrieval.commands.reports.{name}"]


def wants_json() -> bool:
    """Say whether the running command was given --json."""
    return bool(click.get_current_context().params.get("as_json"))


def with_json(command: Callable[..., Outcome]) -> Callable[..., None]:
    """Give a command --json, and show its outcome."""

    @json_option
    @functools.wraps(command)
    def shown(*, as_json: bool, **values: Any) -> None:
        command(**values).show(as_json=as_json)

    return shown


def with_config(
    config: type[T], read: Callable[[Mapping[str, object], Sequence[object]], T] | None = None
) -> Callable[[Callable[[T], Outcome]], Callable[..., None]]:
    """Return a decorator that gives a command the flags of a config and --json, and calls it with the config.

    `read` makes the config from keyword values and positional arguments; without it `build_config` does.
    """
    make = functools.partial(build_config, config) if read is None else read

    def decorate(command: Callable[[T], Outcome]) -> Callable[..., None]:
        @config_options(config)
        @with_json
        @functools.wraps(command)
        def called(*, arguments: tuple[str, ...], **options: Any) -> Outcome:
            return command(make(given_options(options), arguments))

        return called

    return decorate


class CommandWithCommands(click.Group):
    """A command that does its own work, unless its first word names one of its subcommands."""

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
