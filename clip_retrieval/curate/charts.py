"""Tables and bar charts as HTML, without scripts: widths are inline, colors come from the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BAR = "display:inline-block;height:.7em;background:#4a90d9;border-radius:2px;vertical-align:middle"
NUMBER = "text-align:right;padding:.1rem .8rem .1rem 0;font-variant-numeric:tabular-nums;white-space:nowrap"
NAME = "padding:.1rem .8rem .1rem 0;white-space:nowrap"
LONGEST = 22  # em, of a bar


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    lines = [
        f'<tr><td style="{NAME};color:#777">{html.escape(name)}</td><td>{html.escape(value)}</td></tr>'
        for name, value in rows
    ]
    return "<table>" + "".join(lines) + "</table>\n"


def bars(rows: Sequence[tuple[str, int]]) -> str:
    """Return a bar for each name and count, as long as its share of the largest."""
    most = max((count for _, count in rows), default=0)
    lines = [
        f'<tr><td style="{NAME}">{html.escape(name)}</td><td style="{NUMBER}">{count:,}</td>'
        f'<td><span style="{BAR};width:{LONGEST * count / most if most else 0:.2f}em"></span></td></tr>'
        for name, count in rows
    ]
    return "<table>" + "".join(lines) + "</table>\n"


def histogram(
    values: NDArray[np.float64], edges: Sequence[float], form: str = "{:g}", *, whole: bool = False
) -> list[tuple[str, int]]:
    """Return how many values are between edges; the first and the last part are open, and left out if empty.

    Parts of `whole` numbers are named by their last number: 1 to 9, 10 to 19.
    """
    counts, _ = np.histogram(values, [-np.inf, *edges, np.inf])
    names = [f"below {form.format(edges[0])}"]
    names += [f"{form.format(low)} to {form.format(high - whole)}" for low, high in pairwise(edges)]
    names.append(f"{form.format(edges[-1])} and more")
    found = list(zip(names, counts.tolist(), strict=True))
    while found and not found[0][1]:
        del found[0]
    while found and not found[-1][1]:
        del found[-1]
    return found
