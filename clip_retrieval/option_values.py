"""Words of a command line, or values from Python, as the types of config fields."""

from __future__ import annotations

import ast
import types
import typing
from typing import Any, Literal

TRUE_WORDS, FALSE_WORDS = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def literal(value: object) -> object:
    """Return the Python value that a word spells, or the word."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


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


EXAMPLES = {int: "1,2", float: "1,0.5"}  # of lists


def describe_type(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        (kind, *_) = typing.get_args(wanted)
        item = describe_type(kind)
        if typing.get_origin(kind) is Literal:
            return f"some of {item.removeprefix('one of ')} with commas between"
        return f"{item.partition(' ')[2]}s with commas between, such as {EXAMPLES.get(kind, 'a,b')}"
    return {bool: "True or False", int: "a whole number", float: "a number"}.get(wanted, "a text")
