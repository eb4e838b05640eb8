"""The flags of a config as click's options, in every spelling of python-fire, which clip-retrieval 2 used.

`--a_b` and `--a-b` (unified by `with_underscores`), `--flag value`, `--flag=value`, `--flag` and `--noflag` for
booleans, `None` and list literals, positional arguments.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import click

from clip_retrieval.option_values import without_none
from clip_retrieval.options import Flag, dropped_flags, flags_of, positional_names

Command = TypeVar("Command", bound=Callable[..., Any])

NEGATIVE = "no__"  # prefix of click's name for the option that switches a boolean off


def config_options(config: type[Any]) -> Callable[[Command], Command]:
    """Return a decorator that gives a click command every flag of `config`, and positional arguments."""
    by_position = positional_names(config)
    required = [flag.name.upper() for flag in flags_of(config) if flag.is_required and flag.name in by_position]
    shown = required or [by_position[0].upper()]

    def decorate(command: Command) -> Command:
        for flag in reversed(list(flags_of(config))):
            for decorator in click_options(flag):
                command = decorator(command)
        for name in dropped_flags(config):
            command = click.option(f"--{name}", name, hidden=True, is_flag=False, flag_value="True")(command)
            command = negative_option([f"--{name}"], name)(command)
        return click.argument("arguments", nargs=-1, metavar=f"[{' '.join(shown)} ...]")(command)

    return decorate


def click_options(flag: Flag) -> Iterator[Callable[[Command], Command]]:
    wanted, _ = without_none(flag.type)
    names = [spelling(name) for name in (flag.name, *flag.aliases)]
    shown = "required" if flag.is_required else f"default: {flag.default}"
    if flag.is_repeatable:
        shown = f"may be repeated; {shown}" if flag.is_required or flag.default else "may be repeated"
    text = f"{flag.help}  [{shown}]"
    metavar = metavar_of(wanted)
    if flag.is_repeatable:
        yield click.option(*names, flag.name, multiple=True, metavar="TEXT", help=text)
    elif flag.facts.get("is_switch"):
        yield click.option(*names, flag.name, is_flag=True, flag_value="True", default=None, help=flag.help)
    elif wanted is bool:
        yield click.option(*names, flag.name, is_flag=False, flag_value="True", metavar=metavar, help=text)
        yield negative_option(names, flag.name)
    else:
        yield click.option(*names, flag.name, metavar=metavar, help=text)


def spelling(name: str) -> str:
    return f"--{name}" if len(name) > 1 else f"-{name}"


def negative_option(names: Sequence[str], target: str) -> Callable[[Command], Command]:
    """Return fire's `--noflag`, and `--no_flag`."""
    spellings = [f"--{no}{name[2:]}" for name in names for no in ("no", "no_")]
    return click.option(*spellings, f"{NEGATIVE}{target}", flag_value="False", hidden=True)


def with_underscores(name: str) -> str:
    """Return an option's declared name for any spelling; click's token_normalize_func."""
    return name.replace("-", "_")


def metavar_of(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        return "LIST"
    return {bool: "True|False", int: "N", float: "X"}.get(wanted, "TEXT")


def given_options(options: Mapping[str, Any]) -> dict[str, object]:
    """Return the options given on the command line, by field name."""
    return {name.removeprefix(NEGATIVE): value for name, value in options.items() if value not in (None, ())}
