"""Keyword arguments and flags, derived from the fields of the config dataclasses; `option_flags.py` has them for click.

A field declared with `option(...)` is the only place where a flag's name, type, default and help are written.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

import msgspec

from clip_retrieval.errors import ConfigError
from clip_retrieval.option_values import convert, describe_type, literal, without_none

logger = logging.getLogger(__name__)

T = TypeVar("T")
UNITS = "KMGT"  # of sizes in bytes

HINTS: dict[type[Any], dict[str, Any]] = {}  # types of fields by config, filled by `hints_of`

Path = tuple[str, ...]  # attribute names from a config to a field


class Dropped(msgspec.Struct, frozen=True):
    """A flag of clip-retrieval 2 that is refused by name, except with values that request nothing.

    A flag that changes no result only gives a warning.
    """

    reason: str
    harmless: tuple[object, ...] = (None, False)
    is_refused: bool = True


class Facts(TypedDict, total=False):
    """Facts of an option besides its type, default and help."""

    aliases: Sequence[str]  # more spellings
    is_switch: bool  # a boolean that takes no value on the command line, so an argument can follow it
    repeatable: bool  # each occurrence adds one item to a tuple; items may contain commas
    least: float  # smallest value; `check_least` refuses less
    may_change: bool  # may differ between runs into one embeddings folder: it does not affect the output
    kept: bool  # stored with an index, for its updates


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """One option: where it lives in the config, and how it is written and read."""

    name: str
    path: Path
    type: Any
    default: object
    help: str
    aliases: tuple[str, ...] = ()
    facts: Facts

    @property
    def is_repeatable(self) -> bool:
        return self.facts.get("repeatable", False)

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING


def option(default: Any = dataclasses.MISSING, *, help: str, **facts: Unpack[Facts]) -> Any:  # noqa: A002 -- click's word
    """Declare a config field that is also a flag."""
    return dataclasses.field(default=default, metadata={"help": help, "facts": facts})


def option_of(config: type[Any], name: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that is the option of another config, for commands that take only some of its options.

    `default` replaces the default of that config.
    """
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    default = field.default if default is dataclasses.MISSING else default
    return dataclasses.field(default=default, metadata=field.metadata)


def group(config: type[T], aliases: Mapping[str, Sequence[str]] = types.MappingProxyType({})) -> T:
    """Declare a config field that holds another config, whose flags join this one's; `aliases` adds spellings."""
    metadata = {"group_aliases": aliases}
    required = any(flag.is_required for flag in flags_of(config))
    if required:
        return dataclasses.field(metadata=metadata)  # type: ignore[no-any-return]
    return dataclasses.field(default_factory=config, metadata=metadata)


def flags_of(config: type[Any], path: Path = ()) -> Iterator[Flag]:
    """Yield the flags of a config and its groups, in the order in which they are declared."""
    hints = hints_of(config)
    for field in dataclasses.fields(config):
        here = (*path, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            added = field.metadata.get("group_aliases", {})
            for flag in flags_of(typing.cast("type[Any]", hints[field.name]), here):
                yield msgspec.structs.replace(flag, aliases=(*flag.aliases, *added.get(flag.name, ())))
        else:
            about = field.metadata
            yield Flag(
                name=field.name,
                path=here,
                type=hints[field.name],
                default=field.default,
                help=about["help"],
                aliases=tuple(about["facts"].get("aliases", ())),
                facts=about["facts"],
            )


def hints_of(config: type[Any]) -> dict[str, Any]:
    """Return the types of a config's fields; cached, because Python compiles each annotation again at every call."""
    if config not in HINTS:
        HINTS[config] = typing.get_type_hints(config)
    return HINTS[config]


def check_least(config: object) -> None:
    """Raise ConfigError if an option of the config is smaller than its `least`; for `__post_init__`."""
    for field in dataclasses.fields(typing.cast("Any", config)):
        least = field.metadata.get("facts", {}).get("least")
        value = getattr(config, field.name)
        if least is not None and value is not None and not value >= least:  # also false for nan
            raise ConfigError(f"{field.name} must be at least {least}, not {value}")


def build_config(config: type[T], values: Mapping[str, object], arguments: Sequence[object] = ()) -> T:
    """Return the config that flat keyword values and positional arguments describe; raises ConfigError."""
    return assemble(config, read_given(config, values, arguments))


def read_given(config: type[Any], values: Mapping[str, object], arguments: Sequence[object] = ()) -> dict[Path, object]:
    """Return the given keyword and positional values, by path in the config; defaults are left out.

    Positional arguments fill the config's POSITIONAL names, else its fields in order; a repeatable last one takes
    all that are left. Unknown names, dropped flags and missing required values are ConfigErrors that name them.
    """
    flags = list(flags_of(config))
    by_name = {name: flag for flag in flags for name in (flag.name, *flag.aliases)}
    order = [name for name in positional_names(config) if by_name[name].path not in named_paths(by_name, values)]
    if order and by_name[order[-1]].is_repeatable and len(arguments) > len(order):
        arguments = [*arguments[: len(order) - 1], tuple(arguments[len(order) - 1 :])]
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
    return given


def positional_names(config: type[Any]) -> tuple[str, ...]:
    """Return the options that positional arguments fill, in order."""
    return getattr(config, "POSITIONAL", None) or tuple(flag.name for flag in flags_of(config))


def named_paths(by_name: Mapping[str, Flag], values: Mapping[str, object]) -> set[Path]:
    """Return the paths of options given by name; positional arguments skip these, as in fire."""
    return {by_name[name].path for name in values if name in by_name}


def assemble(config: type[T], given: Mapping[Path, object], path: Path = ()) -> T:
    """Build the config and its groups from values by path; missing ones keep their defaults."""
    hints = hints_of(config)
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
    if literal(value) in dropped.harmless:
        return
    if dropped.is_refused:
        raise ConfigError(f"--{name} is not supported: {dropped.reason}")
    logger.warning("--%s changes nothing: %s", name, dropped.reason)


def parse_value(flag: Flag, value: object) -> object:
    """Return the value as the field's type, from a word of the command line or from Python."""
    wanted, is_optional = without_none(flag.type)
    if flag.is_repeatable and isinstance(value, str):
        return convert(wanted, (value,))
    if value is None or value == "None":
        if not is_optional and flag.default is not None:
            raise ConfigError(f"{flag.name} cannot be None")
        return None
    try:
        return convert(wanted, value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{flag.name} takes {describe_type(wanted)}, not {value!r}") from error


def to_json(config: object) -> dict[str, object]:
    """Return the config as plain json values, groups nested."""
    return dataclasses.asdict(typing.cast("Any", config))


def from_json(config: type[T], values: Mapping[str, Any]) -> T:
    """Return the config that `to_json` described; names it does not know are left out."""
    hints = hints_of(config)
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


def parse_bytes(text: str) -> int:
    """Return the bytes that a size means: 500MB and 4G count in powers of 1000, 500MiB and 4Gi in powers of 1024."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"{text!r} is not a size; write it as 500MB or 4G")
    power = UNITS.index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
