"""The console, tables and cells of all reports; control characters in foreign text are escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from clip_retrieval.words import printable

MOST_LINES = 2  # most lines of a cell with foreign text
MOST_TITLE = 100  # characters of a query in the title of a table
ELLIPSIS = "…"


class SafeConsole(Console):
    """Escapes terminal controls; rich calls `render_str` for every str, in cells and titles too."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text with its control characters as escapes."""
        return super().render_str(printable(text), **options)


def load_widths() -> None:
    """Make rich read the widths of all characters now; it takes 40 ms when a text is first cut."""
    cell_len(ELLIPSIS)


def open_console(*, wraps: bool = False) -> Console:
    """Open the console of a report; lines stay whole, for copying, unless `wraps`, which tables need."""
    return SafeConsole(highlight=False, markup=False, emoji=False, soft_wrap=not wraps)


def print_table(table: Table) -> None:
    open_console(wraps=True).print(table)


def make_table(headings: Sequence[str], *, title: str | None = None, numbers: Collection[str] = ()) -> Table:
    """Return a table that folds long texts, and aligns the columns `numbers` to the right."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        if heading in numbers:
            table.add_column(heading, justify="right")
        else:
            table.add_column(heading, overflow="fold")
    return table


def quoted(text: str) -> str:
    """Return a query for the title of a table: on one line, in quotes, cut if it is long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= MOST_TITLE else f"{line[: MOST_TITLE - 1]}{ELLIPSIS}")


class Cell:
    """A foreign text in a table: its start, or with `keeps_end` its end, in at most two lines."""

    def __init__(self, text: str, *, keeps_end: bool = False) -> None:
        self.text = " ".join(printable(text).split())
        self.keeps_end = keeps_end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n").join(self.lines(console, options.max_width))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, Text(self.text[: MOST_LINES * options.max_width], overflow="fold"))

    def lines(self, console: Console, width: int) -> list[Text]:
        """Return the lines that are shown, with an ellipsis for text that is left out."""
        most = MOST_LINES * width  # no more characters fit, so no more are wrapped
        some = self.text[-most - 1 :] if self.keeps_end else self.text[: most + 1]
        while True:
            is_cut = len(some) < len(self.text)
            shown = (ELLIPSIS + some if self.keeps_end else some + ELLIPSIS) if is_cut else some
            lines = list(Text(shown, overflow="fold").wrap(console, width))
            if len(lines) <= MOST_LINES:
                return lines
            some = some[1:] if self.keeps_end else some[:-1]
