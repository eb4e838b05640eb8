"""Command-line options and keyword arguments, derived from the fields of the config dataclasses.

A field declared with `option(...)` is the only place where a flag's name, type, default and help are written.
Spellings are those of python-fire, which clip-retrieval 2 used: `--a_b` and `--a-b` (made one by `with_underscores`),
`--flag value`, `--flag=value`, `--flag` and `--noflag` for booleans, `None` and list literals, positional arguments.
"""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import click

from clip_retrieval.errors import ConfigError

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

NEGATIVE = "no__"  # what click calls the option that switches a boolean off

TRUE_WORDS, FALSE_WORDS = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Dropped:
    """A flag of clip-retrieval 2 that is refused by name, but for values that ask for nothing."""

    reason: str
    harmless: tuple[object, ...] = (None, False)


@dataclass(frozen=True)
class Flag:
    """One option: where it lives in the config, and how it is written and read."""

    name: str
    path: tuple[str, ...]  # attribute names from the config to the field
    type: Any
    default: object
    help: str
    aliases: tuple[str, ...]
    is_internal: bool

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 -- click's word
    aliases: Sequence[str] = (),
    internal: bool = False,
) -> Any:
    """Declare a config field that is also a flag; `internal` ones are no flags."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": tuple(aliases), "internal": internal})


def group(config: type[T]) -> T:
    """Declare a config field that holds another config, whose flags join this one's."""
    required = any(flag.is_required for flag in flags_of(config))
    if required:
        return dataclasses.field()  # type: ignore[no-any-return]
    return dataclasses.field(default_factory=config)


def flags_of(config: type[Any], path: tuple[str, ...] = ()) -> Iterator[Flag]:
    """Yield the flags of a config and its groups, in the order in which they are declared."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        here = (*path, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flags_of(typing.cast("type[Any]", hints[field.name]), here)
        else:
            about = field.metadata
            yield Flag(
                name=field.name,
                path=here,
                type=hints[field.name],
                default=field.default,
                help=about.get("help", ""),
                aliases=about.get("aliases", ()),
                is_internal=about.get("internal", False),
            )


def build_config(config: type[T], values: Mapping[str, object], arguments: Sequence[object] = ()) -> T:
    """Return the config that flat keyword values and positional arguments describe.

    Positional arguments fill the config's POSITIONAL names, else its fields in order. Unknown names, dropped
    flags and missing required values are ConfigErrors that name them.
    """
    flags = [flag for flag in flags_of(config) if not flag.is_internal]
    by_name = {name: flag for flag in flags for name in (flag.name, *flag.aliases)}
    order = [name for name in positional_names(config) if by_name[name].path not in named_paths(by_name, values)]
    if len(arguments) > len(order):
        raise ConfigError(f"too many arguments: {list(arguments[len(order) :])} are left over")
    positional = zip((by_name[name] for name in order), arguments, strict=False)
    given = {flag.path: parse_value(flag, value) for flag, value in positional}
    for name, value in values.items():
        if name in dropped_flags(config):
            refuse_dropped(name, value, dropped_flags(config)[name])
        elif name not in by_name:
            raise ConfigError(f"there is no option {name}; the options are {', '.join(flag.name for flag in flags)}")
        elif by_name[name].path in given:
            raise ConfigError(f"{name} is given twice")
        else:
            given[by_name[name].path] = parse_value(by_name[name], value)
    missing = [flag.name for flag in flags if flag.is_required and flag.path not in given]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given")
    return assemble(config, given)


def positional_names(config: type[Any]) -> tuple[str, ...]:
    """Return what positional arguments fill, in order."""
    return getattr(config, "POSITIONAL", None) or tuple(flag.name for flag in flags_of(config) if not flag.is_internal)


def named_paths(by_name: Mapping[str, Flag], values: Mapping[str, object]) -> set[tuple[str, ...]]:
    """Return the fields that are given by name; positional arguments pass over them, as in fire."""
    return {by_name[name].path for name in values if name in by_name}


def assemble(config: type[T], given: Mapping[tuple[str, ...], object], path: tuple[str, ...] = ()) -> T:
    """Make the config and its groups from values by path; what is not given keeps its default."""
    hints = typing.get_type_hints(config)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(typing.cast("Any", config)):
        here = (*path, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = assemble(typing.cast("type[Any]", hints[field.name]), given, here)
        elif here in given:
            arguments[field.name] = given[here]
    return config(**arguments)


def dropped_flags(config: type[Any]) -> Mapping[str, Dropped]:
    """Return the flags that this config refuses, by name."""
    return typing.cast("Mapping[str, Dropped]", getattr(config, "DROPPED", {}))


def refuse_dropped(name: str, value: object, dropped: Dropped) -> None:
    if literal(value) not in dropped.harmless:
        raise ConfigError(f"--{name} is not supported: {dropped.reason}")


def literal(value: object) -> object:
    """Return the Python value that a word spells, or the word."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def parse_value(flag: Flag, value: object) -> object:
    """Return the value as the field's type, from a word of the command line or from Python."""
    wanted, is_optional = without_none(flag.type)
    if value is None or value == "None":
        if not is_optional and flag.default is not None:
            raise ConfigError(f"{flag.name} cannot be None")
        return None
    try:
        return convert(wanted, value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{flag.name} takes {describe_type(wanted)}, not {value!r}") from error


def convert(wanted: Any, value: object) -> object:
    if typing.get_origin(wanted) is Literal:
        if value not in typing.get_args(wanted):
            raise ValueError(value)
        return value
    if typing.get_origin(wanted) is tuple:
        return tuple(convert(typing.get_args(wanted)[0], item) for item in as_list(value))
    if wanted is bool:
        return as_bool(value)
    if isinstance(value, bool) or (wanted is int and isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return wanted(value)


def as_bool(value: object) -> bool:
    word = str(value).lower()
    if word not in TRUE_WORDS | FALSE_WORDS:
        raise ValueError(value)
    return word in TRUE_WORDS


def as_list(value: object) -> list[object]:
    """Return the items of a list, of a list literal, or of words between commas."""
    parsed = literal(value)
    if isinstance(parsed, list | tuple | range):
        return list(parsed)
    if isinstance(parsed, str):
        return [word.strip() for word in parsed.strip("[]()").split(",") if word.strip()]
    return [parsed]


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type without None, and whether None was part of it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(hint))
    return hint, False


def describe_type(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        return f"a list of {describe_type(typing.get_args(wanted)[0])}"
    return {bool: "True or False", int: "a whole number", float: "a number"}.get(wanted, "a text")


def config_options(config: type[Any]) -> Callable[[Command], Command]:
    """Return a decorator that gives a click command every flag of `config`, and positional arguments."""
    required = [flag.name.upper() for flag in flags_of(config) if flag.is_required]

    def decorate(command: Command) -> Command:
        for flag in reversed([flag for flag in flags_of(config) if not flag.is_internal]):
            for decorator in click_options(flag):
                command = decorator(command)
        for name in dropped_flags(config):
            command = click.option(f"--{name}", name, hidden=True, is_flag=False, flag_value="True")(command)
            command = negative_option([f"--{name}"], name)(command)
        return click.argument("arguments", nargs=-1, metavar=f"[{' '.join(required)} ...]")(command)

    return decorate


def click_options(flag: Flag) -> Iterator[Callable[[Command], Command]]:
    wanted, _ = without_none(flag.type)
    names = [f"--{name}" for name in (flag.name, *flag.aliases)]
    shown = "required" if flag.is_required else f"default: {flag.default}"
    text = f"{flag.help}  [{shown}]"
    metavar = metavar_of(wanted)
    if wanted is bool:
        yield click.option(*names, flag.name, is_flag=False, flag_value="True", metavar=metavar, help=text)
        yield negative_option(names, flag.name)
    else:
        yield click.option(*names, flag.name, metavar=metavar, help=text)


def negative_option(names: Sequence[str], target: str) -> Callable[[Command], Command]:
    """Return fire's `--noflag`, and `--no_flag`."""
    spellings = [f"--{no}{name[2:]}" for name in names for no in ("no", "no_")]
    return click.option(*spellings, f"{NEGATIVE}{target}", flag_value="False", hidden=True)


def with_underscores(name: str) -> str:
    """Return an option's name as it is declared, however it was written; for click's token_normalize_func."""
    return name.replace("-", "_")


def metavar_of(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        return "LIST"
    return {bool: "True|False", int: "N", float: "X"}.get(wanted, "TEXT")


def given_options(options: Mapping[str, Any]) -> dict[str, object]:
    """Return what was given on the command line, by name of the field."""
    return {name.removeprefix(NEGATIVE): value for name, value in options.items() if value is not None}


def to_json(config: object) -> dict[str, object]:
    """Return the config as plain json values, groups nested."""
    return dataclasses.asdict(typing.cast("Any", config))


def from_json(config: type[T], values: Mapping[str, Any]) -> T:
    """Return the config that `to_json` described; names it does not know are left out."""
    hints = typing.get_type_hints(config)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(typing.cast("Any", config)):
        if field.name not in values:
            continue
        hint, value = hints[field.name], values[field.name]
        if dataclasses.is_dataclass(hint):
            value = from_json(typing.cast("type[Any]", hint), value)
        elif isinstance(value, list):
            value = tuple(value)
        arguments[field.name] = value
    return config(**arguments)
