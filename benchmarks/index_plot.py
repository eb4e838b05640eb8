"""Recall against time as a picture: SVG by hand, a row of panels for each bound, a panel for each kind of query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 420, 260, 46
COLORS = {"autofaiss": "#c2410c", "ours": "#1d4ed8"}
MODE = "one thread"

Dot = tuple[float, float, str, bool]  # milliseconds, recall@10, setting, whether it is the stored one


def draw_curves(results: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> str:
    """Return the picture; rings are the settings that are stored with the indices."""
    panels = []
    for row, result in enumerate(results):
        for column, modality in enumerate(modalities):
            dots = {engine: read_dots(found, modality) for engine, found in result["engines"].items() if found["own"]}
            if dots:
                place = f'<g transform="translate({column * WIDTH} {row * HEIGHT})">'
                panels += [place, *draw_panel(f"{result['bound']}, {modality} queries", dots), "</g>"]
    width, height = WIDTH * len(modalities), HEIGHT * len(results)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
    return "\n".join([f'{head}font-size="11">', '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>\n"])


def read_dots(found: Mapping[str, Any], modality: str) -> list[Dot]:
    points = [(point, point is found["own"]) for point in (*found["points"], found["own"])]
    return sorted(
        (point["ms"][f"{modality}, {MODE}"]["median"], point["recall@10"][modality], point["setting"], is_own)
        for point, is_own in points
    )


def find_front(dots: Sequence[Dot]) -> list[Dot]:
    """Return the dots that find more than every faster one."""
    kept: list[Dot] = []
    for dot in dots:
        if not kept or dot[1] > kept[-1][1]:
            kept.append(dot)
    return kept


def draw_panel(title: str, dots: Mapping[str, Sequence[Dot]]) -> list[str]:
    everything = [dot for some in dots.values() for dot in some]
    first, last = (math.log10(pick(dot[0] for dot in everything)) for pick in (min, max))
    low = math.floor(10 * min(dot[1] for dot in everything)) / 10

    def at(dot: Dot) -> tuple[float, float]:
        across = (math.log10(dot[0]) - first) / max(last - first, 1e-9)
        up = (dot[1] - low) / max(1 - low, 1e-9)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    left, right, top, bottom = MARGIN, WIDTH - MARGIN, MARGIN, HEIGHT - MARGIN
    drawn = [f'<text x="{left}" y="{top - 22}" font-weight="bold">{title}: recall@10 by ms, one thread</text>']
    for share in range(5):
        y, recall = bottom - share * (bottom - top) / 4, low + share * (1 - low) / 4
        drawn.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{recall:.2f}</text>')
        x, milliseconds = left + share * (right - left) / 4, 10 ** (first + share * (last - first) / 4)
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{milliseconds:.3g}</text>')
    for i, (engine, some) in enumerate(dots.items()):
        color = COLORS[engine]
        line = " ".join("{:.1f},{:.1f}".format(*at(dot)) for dot in find_front(some))
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
        drawn.append(f'<text x="{right - 100 + 60 * i}" y="{top - 6}" fill="{color}">{engine}</text>')
        for dot in some:
            x, y = at(dot)
            radius, fill = (6, "none") if dot[3] else (2.5, color)
            name = f"<title>{dot[2]}: {dot[1]:.3f} in {dot[0]:.2f} ms</title>"
            drawn.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{color}">{name}</circle>'
            )
    return drawn
