"""Rows of csv text. A quote that begins a cell and never ends costs no row: its line is read as it stands."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

LONGEST_CELL = 1 << 24  # characters; so much text is held while the end of a quote is looked for
URL = re.compile(r'"?https?://[^\s"]+"?')

csv.field_size_limit(LONGEST_CELL)


@dataclass
class Lines:
    """The lines of a text, of which some may be given back to be read again."""

    text: Iterator[str]
    first_number: int = 1  # of the lines in `taken`
    taken: list[str] = field(default_factory=list)  # by the row that is read now
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
    """Yield the cells of each row, and the number of its line where a quote in it has no end.

    A quote has no end where the text ends inside of it, where something other than a delimiter follows the next quote,
    or where a line in between is a row with a url of its own, `width` cells wide.
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
    """Return the cells of a line with quotes in odd places; None where one of them has no end in it."""
    reader = csv.reader([line, ""], delimiter=delimiter)
    try:
        cells = next(reader)
    except csv.Error:  # a cell that is too long
        return None
    return cells if reader.line_num == 1 else None


def holds_row(cell: str, delimiter: str, width: int | None) -> bool:
    """Say whether a later line of a cell is a row: as many cells as there are columns, one of them a url alone."""
    if width is None or width < 2 or "\n" not in cell or "://" not in cell:
        return False
    rows = (line.strip("\r").split(delimiter) for line in cell.split("\n")[1:])
    return any(len(cells) == width and any(map(URL.fullmatch, map(str.strip, cells))) for cells in rows)
