"""Pages to look at: sections of pictures, without scripts."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from clip_retrieval.filter.sheet import make_thumbnail
from clip_retrieval.layout import CAPTION, IMAGE_PATH
from clip_retrieval.query.pictures import find_picture
from clip_retrieval.storage import Folder

PAGE = "curate"  # the name of page.html in its own head


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, a line below it, and HTML of its own or figures."""

    heading: str
    note: str = ""
    figures: Sequence[str] = ()
    body: str = ""  # HTML, between the note and the figures
    is_narrow: bool = False  # as wide as its figures, so another fits next to it


def write_page(folder: Folder, name: str, title: str, sections: Sequence[Section]) -> None:
    """Write a self-contained page."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(query=html.escape(title), sections="\n".join(map(render, sections)))
    with folder.staged(name) as staged:
        staged.write_text(page, encoding="utf-8")


def render(section: Section) -> str:
    heading = f"<h2>{html.escape(section.heading)}</h2>\n" if section.heading else ""
    note = f"<p>{html.escape(section.note)}</p>\n" if section.note else ""
    figures = "<section>\n" + "\n".join(section.figures) + "\n</section>" if section.figures else ""
    width = f' class="narrow" style="--figures:{len(section.figures)}"' if section.is_narrow else ""
    return f"<div{width}>\n{heading}{note}{section.body}{figures}</div>"


def figure(row: Mapping[str, Any], mark: str, number: float | None = None) -> str:
    """Return a row's picture: a word in bold, a number and its caption below; hovering shows its metadata."""
    caption = row.get(CAPTION) or row.get(IMAGE_PATH) or ""
    details = "\n".join(f"{name}: {value}" for name, value in row.items() if value is not None)
    score = "" if number is None else f" <span>{number:.3f}</span>"
    words = f"<b>{html.escape(mark)}</b>{score} {html.escape(str(caption))}"
    small, problem = make_thumbnail(find_picture(dict(row)))
    if problem is not None:
        details = f"{details}\nproblem: {problem}"
    missing = f'<div class="missing">{"no picture" if row.get(IMAGE_PATH) is None else "picture cannot be read"}</div>'
    picture = missing if small is None else f'<img alt="" src="data:image/jpeg;base64,{small}">'
    return f'<figure title="{html.escape(details)}">{picture}<figcaption>{words}</figcaption></figure>'
