"""JSON lines: one object per line, whose keys are the columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.compression import DAMAGE
from clip_retrieval.errors import SourceError, first_line
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.sources.stamps import version_at
from clip_retrieval.sources.tables import Kind, Table
from clip_retrieval.sources.text_files import open_text
from clip_retrieval.sources.types import Failure
from clip_retrieval.words import with_article

JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class JsonTable(Table):
    """One file of JSON lines; every key that occurs in any line is a column."""

    def rows(
        self, start: int, stop: int | None, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield the rows, and a Failure for each line that is not an object and for damage that ends the file."""
        number = -1
        try:
            for number, line in enumerate(lines_of(self.url)):
                if stop is not None and number >= stop:
                    return
                if number >= start:
                    row = parse(line)
                    if isinstance(row, str):
                        yield Failure(str(number), self.url, "other", "json", f"row {number} is no json object: {row}")
                    else:
                        yield number, {name: row.get(name) for name in columns}
        except (OSError, EOFError, ValueError, *DAMAGE) as error:
            yield Failure.of_rest(self.url, number + 1, error)


def lines_of(url: str) -> Iterator[str]:
    with open_text(url) as text:
        yield from (line for line in text if line.strip())


def parse(line: str) -> dict[str, Any] | str:
    """Return the object on a line, or a description of what is wrong with it."""
    try:
        value = json.loads(line)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return first_line(error)
    return value if isinstance(value, dict) else f"holds {with_article(type(value).__name__)}"


def open_json_lines(url: str) -> JsonTable:
    """Read the file once to find its columns; raises SourceError if it cannot be read."""
    kinds: dict[str, Kind] = {}
    version = version_at(url)
    try:
        for place, line in enumerate(lines_of(url)):
            pointer = describe_pointer(line) if place == 0 else None
            if pointer is not None:
                raise SourceError(f"{url} is {pointer}")
            row = parse(line)
            for name, value in row.items() if isinstance(row, dict) else ():
                kinds[name] = kind_of(value) if kinds.get(name, "other") == "other" else kinds[name]
    except FileNotFoundError as error:
        raise SourceError(f"{url} does not exist") from error
    except (OSError, EOFError, ValueError, *DAMAGE) as error:
        if not kinds:
            raise SourceError(f"{url} cannot be read: {first_line(error)}") from error
    return JsonTable(url, kinds, {name: str(kind) for name, kind in kinds.items()}, version=version)


def kind_of(value: object) -> Kind:
    """Return the kind of a value: could it be a url or a caption?"""
    if isinstance(value, str):
        return "text"
    is_texts = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return "texts" if is_texts else "other"
