"""Rows of CSV text. An unclosed quote loses no row: the line that opens it is read without quoting."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

LONGEST_CELL = 1 << 24  # characters; bounds the text held in memory while a closing quote is searched
URL = re.compile(r'"?https?://[^\s"]+"?')

csv.field_size_limit(LONGEST_CELL)


@dataclass
class Lines:
    """The lines of a text; lines can be given back, to be read again."""

    text: Iterator[str]
    first_number: int = 1  # line number of taken[0]
    taken: list[str] = field(default_factory=list)  # lines of the current row
    returned: deque[str] = field(default_factory=deque)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.returned.popleft() if self.returned else next(self.text)
        self.taken.append(line)
        return line

    def begin_row(self) -> None:
        self.first_number += len(self.taken)
        self.taken.clear()

    def give_back(self, lines: Sequence[str]) -> None:
        self.returned.extendleft(reversed(lines))
        del self.taken[len(self.taken) - len(lines) :]


def read_rows(text: Iterable[str], delimiter: str, width: int | None = None) -> Iterator[tuple[list[str], int | None]]:
    """Yield the cells of each row, with the line number of an unclosed quote in it, or None.

    A quote counts as unclosed if the text ends inside it, if the next quote is not followed by a delimiter, or if a
    line inside it looks like a row: `width` cells, one of them a url.
    """
    lines = Lines(iter(text))
    strict = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        cells: list[str] | None = None
        try:
            cells = next(strict)
        except StopIteration:
            return
        except csv.Error:
            cells = lenient(lines.taken[0], delimiter) if len(lines.taken) == 1 else None
        if cells is not None and not any(holds_row(cell, delimiter, width) for cell in cells):
            yield cells, None
        else:
            lines.give_back(lines.taken[1:])
            yield lines.taken[0].rstrip("\r\n").split(delimiter), lines.first_number


def lenient(line: str, delimiter: str) -> list[str] | None:
    """Return the cells of a line with quotes inside cells; None if a quote is not closed in it."""
    reader = csv.reader([line, ""], delimiter=delimiter)
    try:
        cells = next(reader)
    except csv.Error:  # the cell is longer than LONGEST_CELL
        return None
    return cells if reader.line_num == 1 else None


def holds_row(cell: str, delimiter: str, width: int | None) -> bool:
    """Say whether a later line of a cell looks like a row: as many cells as columns, one of them just a url."""
    if width is None or width < 2 or "\n" not in cell or "://" not in cell:
        return False
    rows = (line.strip("\r").split(delimiter) for line in cell.split("\n")[1:])
    return any(len(cells) == width and any(map(URL.fullmatch, map(str.strip, cells))) for cells in rows)
