"""The sheet: one self-contained page with thumbnails, scores and captions of the hits, a heading for each query."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ImageError
from clip_retrieval.filter.hits import Asked, Hits
from clip_retrieval.layout import CAPTION, IMAGE_PATH
from clip_retrieval.query.pictures import Picture
from clip_retrieval.storage import Folder

SHEET = "index.html"
THUMBNAIL_SIDE = 224
MOST_THUMBNAILS = 1000  # a page with more would take hundreds of megabytes

Cards = Mapping[int, str]  # by the place of the hit


def shown_ranges(hits: Hits) -> list[range]:
    """Return the places of the hits that the sheet shows, by query: an equal share for each, the nearest first."""
    each = max(1, MOST_THUMBNAILS // max(1, len(hits.asked)))
    starts = hits.starts.tolist()
    shown = [range(start, min(start + each, stop)) for start, stop in pairwise(starts)]
    return [places if number < MOST_THUMBNAILS else range(0) for number, places in enumerate(shown)]


def write_sheet(folder: Folder, hits: Hits, cards: Cards) -> None:
    """Write index.html."""
    template = Template(Path(__file__).with_name("sheet.html").read_text(encoding="utf-8"))
    starts = hits.starts.tolist()
    sections = [
        section(asked, range(start, stop), cards, has_heading=hits.is_batch)
        for asked, (start, stop) in zip(hits.asked, pairwise(starts), strict=True)
    ]
    title = f"{len(hits.asked):,} queries" if hits.is_batch else hits.asked[0].text
    page = template.substitute(query=html.escape(title), sections="\n".join(sections))
    with folder.staged(SHEET) as staged:
        staged.write_text(page, encoding="utf-8")


def section(asked: Asked, places: range, cards: Cards, *, has_heading: bool) -> str:
    """Return a query's part of the page."""
    shown = [cards[place] for place in places if place in cards]
    if asked.answer is None:
        note = html.escape(asked.problem or "no answer")
    else:
        note = f"{len(places)} {'hit' if len(places) == 1 else 'hits'}" if len(places) else "No hit."
        note = f"{asked.answer.query.kind} query &middot; {note}"
        if len(places) > len(shown):
            note += f", the first {len(shown)} are shown"
    heading = f"<h2>{asked.number}. {html.escape(asked.text)}</h2>\n" if has_heading else ""
    return f"{heading}<p>{note}</p>\n<section>\n" + "\n".join(shown) + "\n</section>"


def card(hit: dict[str, Any], picture: Picture) -> str:
    """Return a hit's part of the page; its metadata is told by the mouse."""
    caption = hit.get(CAPTION) or hit.get(IMAGE_PATH) or ""
    details = "\n".join(f"{name}: {value}" for name, value in hit.items() if value is not None)
    words = f"<b>{hit['rank']}</b> <span>{hit['similarity']:.3f}</span> {html.escape(str(caption))}"
    return f'<figure title="{html.escape(details)}">{thumbnail(picture)}<figcaption>{words}</figcaption></figure>'


def thumbnail(picture: Picture) -> str:
    if picture.data is None:
        return f'<div class="missing">{html.escape(picture.problem or "no picture")}</div>'
    from clip_retrieval.encoder.images import decode_image  # loads Pillow: 30 ms of every start

    try:
        with counting_warnings():
            image = decode_image(picture.data)
    except ImageError as error:
        return f'<div class="missing">{html.escape(str(error))}</div>'
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
