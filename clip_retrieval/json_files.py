"""JSON that others may have written: read within limits, its shape checked, and refused in one sentence.

A shape is a type: dict[str, Any], a dataclass, or anything else that msgspec.convert takes, with bounds as
Annotated[int, msgspec.Meta(ge=1)]. Fields that a dataclass does not name are ignored.
Danger: msgspec 0.23 corrupts memory if one field joins a bounded number and a tuple of fixed length, such as
Annotated[int, Meta(ge=1)] | tuple[int, int]; leave the bound out there, and check it afterwards.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clip_retrieval.errors import ClipRetrievalError, StorageError, first_line
from clip_retrieval.git_lfs import describe_pointer

Shape = TypeVar("Shape")

LARGEST_FILE = 100_000_000  # bytes: the bound of a safetensors header, and far above any other JSON of a model or index
PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<key>.*)`)?", re.DOTALL)  # msgspec's messages


def read_json(path: Path, shape: type[Shape], error: type[ClipRetrievalError] = StorageError) -> Shape:
    """Return the JSON in a local file; raises `error` if it is unreadable, too large, broken or of another shape."""
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path} is not a regular file")
        size = path.stat().st_size
        data = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if size > LARGEST_FILE:
        raise error(f"{path} is too large for JSON of any known kind: {size:,} bytes")
    return parse_json(data, shape, path, error)


def parse_json(
    data: bytes | str,
    shape: type[Shape],
    source: object,
    error: type[ClipRetrievalError] = StorageError,
    advice: str = "fetch or write it again",
) -> Shape:
    """Return JSON as `shape`; raises `error` in a sentence that begins with `source`, the file's name."""
    try:
        value: Any = json.loads(data)
    except RecursionError as problem:
        raise error(f"{source} is not valid JSON: it is nested too deeply") from problem
    except ValueError as problem:
        pointer = describe_pointer(data)
        if pointer:
            raise error(f"{source} is {pointer}") from problem
        raise error(f"{source} is not valid JSON ({explain(data, problem)})", advice=advice) from problem
    return check_shape(value, shape, source, error)


def explain(data: bytes | str, problem: ValueError) -> str:
    """Return why data are not JSON; of bytes, Python's message only names the encoding that it assumed."""
    if not data:
        return "it is empty"
    if not (data if isinstance(data, str) else data.decode("latin-1")).strip("\0"):
        return "it holds only zeros"
    return "it is not UTF-8 text" if isinstance(problem, UnicodeDecodeError) else first_line(problem)


def check_shape(
    value: object, shape: type[Shape], source: object, error: type[ClipRetrievalError] = StorageError
) -> Shape:
    """Return a parsed JSON value as `shape`; raises `error` that names the source, the key, and both types."""
    try:
        return msgspec.convert(value, shape)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise error(f"{source} cannot be used: {describe(problem)}") from problem


def describe(problem: Exception) -> str:
    """Return msgspec's message with the key first: image_mean: expected `array`, got `null`."""
    match = PLACE.fullmatch(first_line(problem))
    assert match is not None
    what, key = match["what"], (match["key"] or "").lstrip(".")
    return f"{key}: {what[0].lower()}{what[1:]}" if key else what[0].lower() + what[1:]
