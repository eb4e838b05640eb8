"""The sheet: one self-contained page with thumbnails, scores and metadata of the hits, a section for each query."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ImageError
from clip_retrieval.filter.hits import PICTURE, Asked, Hits
from clip_retrieval.layout import CAPTION, IMAGE_PATH
from clip_retrieval.media.places import place_path, split_place
from clip_retrieval.query.hits import plain
from clip_retrieval.query.pictures import Picture, find_local_file
from clip_retrieval.storage import Folder
from clip_retrieval.version import __version__
from clip_retrieval.web_pages import fill_page, script_json

SHEET = "index.html"
THUMBNAIL_SIDE = 224
MOST_THUMBNAILS = 1000  # a page with more would take hundreds of megabytes

Cards = Mapping[int, tuple[str, str]]  # by the place of the hit: a line of plain HTML, and JSON


def shown_ranges(hits: Hits) -> list[range]:
    """Return the places of the hits that the sheet shows, by query: an equal share for each, nearest first."""
    each = max(1, MOST_THUMBNAILS // max(1, len(hits.asked)))
    starts = hits.starts.tolist()
    shown = [range(start, min(start + each, stop)) for start, stop in pairwise(starts)]
    return [places if number < MOST_THUMBNAILS else range(0) for number, places in enumerate(shown)]


def write_sheet(folder: Folder, hits: Hits, cards: Cards) -> None:
    """Write index.html."""
    title = f"{len(hits.asked):,} queries" if hits.is_batch else hits.asked[0].text
    starts = hits.starts.tolist()
    sections = [(asked, range(*places)) for asked, places in zip(hits.asked, pairwise(starts), strict=True)]
    plain_text = "\n".join(plain_section(asked, places, cards) for asked, places in sections)
    with folder.staged(SHEET) as staged, staged.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(fill_page("sheet", title, plain_text, page_data(title, hits, sections, cards)))


def page_data(title: str, hits: Hits, sections: list[tuple[Asked, range]], cards: Cards) -> Iterator[str]:
    """Yield the JSON that the page reads; front/src/sheet/hits.ts has its shape."""
    about = {"title": title, "version": __version__, "isBatch": hits.is_batch}
    yield f'{script_json(about)[:-1]},"queries":['
    for number, (asked, places) in enumerate(sections):
        query = {
            "number": asked.number,
            "text": asked.text,
            "kind": None if asked.answer is None else asked.answer.query.kind,
            "problem": (asked.problem or "no answer") if asked.answer is None else None,
            "count": len(places),
        }
        yield f'{"," if number else ""}{script_json(query)[:-1]},"hits":['
        yield ",\n".join(cards[place][1] for place in places if place in cards)
        yield "]}"
    yield "]}"


def plain_section(asked: Asked, places: range, cards: Cards) -> str:
    """Return a query's hits as a list for browsers without scripts."""
    note = f"<p>{html.escape(asked.problem)}</p>" if asked.problem else ""
    lines = "".join(cards[place][0] for place in places if place in cards)
    return f"<h2>{asked.number}. {html.escape(asked.text)}</h2>{note}<ul>{lines}</ul>"


def make_card(hit: dict[str, Any], picture: Picture, name: str | None) -> tuple[str, str]:
    """Return a hit as a line of plain HTML and as JSON; `name` is the name of its exported picture."""
    thumbnail, problem = make_thumbnail(picture)
    row = {column: plain(value) for column, value in hit.items()} | {PICTURE: name}
    caption = hit.get(CAPTION) or hit.get(IMAGE_PATH) or ""
    line = f"<li>{hit['rank']}. {hit['similarity']:.3f} {html.escape(str(caption))}</li>"
    about = {"row": row, "thumbnail": thumbnail, "problem": problem, "file": find_file(hit, name)}
    source = find_source(hit)
    about |= {} if source is None else {"source": source}
    return line, script_json(about)


def find_file(hit: dict[str, Any], name: str | None) -> str | None:
    """Return the url of the full picture: the exported one next to the page, or a file of this machine."""
    if name is not None:
        return quote(name.encode("utf-8", "surrogateescape"))
    local = find_local_file(hit)
    return None if local is None else local.as_uri()


def find_source(hit: dict[str, Any]) -> str | None:
    """Return the url that opens a file of this machine at the hit's page or time; None for other pictures."""
    found = split_place(str(hit.get(IMAGE_PATH) or ""))
    local = None if found is None else find_local_file({IMAGE_PATH: found[0]})
    return None if found is None or local is None else place_path(local.as_uri(), found[1])


def make_thumbnail(picture: Picture) -> tuple[str | None, str | None]:
    """Return a small picture as a JPEG in base64, or the reason why there is none."""
    if picture.data is None:
        return None, picture.problem or "no picture"
    from clip_retrieval.encoder.images import decode_image, open_image  # loads Pillow: 30 ms of every start
    from clip_retrieval.encoder.orientation import read_orientation, turn_upright

    try:
        with counting_warnings():
            image = turn_upright(decode_image(picture.data), read_orientation(open_image(picture.data)))
    except ImageError as error:
        return None, str(error)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode(), None
