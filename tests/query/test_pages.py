"""Hits that are pages of PDFs or frames of videos: drawn when they are shown, only below the roots, and linked."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clip_retrieval.filter.pictures import picture_name
from clip_retrieval.filter.sheet import find_source
from clip_retrieval.query.pictures import PAGE_SIDE, Roots, find_local_file, find_picture


@pytest.fixture
def paper(tmp_path: Path, make_pdf: Callable[..., bytes]) -> Path:
    """Give a PDF of two pages in its own folder."""
    path = tmp_path / "papers" / "a b.pdf"
    path.parent.mkdir()
    path.write_bytes(make_pdf("one", ""))
    return path


def test_a_page_is_shown_as_a_picture_of_it(paper: Path) -> None:
    first, second, third = (find_picture({"image_path": f"{paper}#page={page}"}) for page in (1, 2, 3))
    assert first.data is not None
    assert second.data is not None
    assert max(Image.open(io.BytesIO(first.data)).size) == PAGE_SIDE
    assert first.data != second.data
    assert third.data is None
    assert third.problem == "the PDF has 2 pages by now"


def test_a_frame_is_shown_as_a_picture_of_it_and_led_to(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    film = tmp_path / "a b.mp4"
    film.write_bytes(make_video("red", "blue"))
    hit = {"image_path": f"{film}#t=1.2"}
    data = find_picture(hit, Roots.of([str(tmp_path)])).data
    assert data is not None
    assert Image.open(io.BytesIO(data)).convert("HSV").resize((1, 1)).getpixel((0, 0))[0] == pytest.approx(170, abs=9)  # type: ignore[index]
    assert find_picture({"image_path": f"{film}#t=9"}).problem == "the video ends after 1.8 s by now"
    assert find_local_file(hit) is None
    assert find_source(hit) == f"{film.as_uri()}#t=1.2"
    assert picture_name("00001", hit, data) == "00001_a b.mp4#t=1.2.jpg"


def test_pages_are_served_from_below_the_roots_alone(paper: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "papers" / "link.pdf").symlink_to(tmp_path / "secret.pdf")
    roots = Roots.of([str(paper.parent)])
    assert roots.allow({"image_path": f"{paper}#page=1"})
    assert find_picture({"image_path": f"{paper}#page=1"}, roots).data is not None
    assert not Roots.of([str(tmp_path / "other")]).allow({"image_path": f"{paper}#page=1"})
    assert not roots.allow({"image_path": f"{paper.parent}/link.pdf#page=1"})


def test_a_sheet_leads_to_the_page_in_its_file(paper: Path) -> None:
    hit = {"image_path": f"{paper}#page=2"}
    assert find_local_file(hit) is None  # linking or showing the whole file would be another picture
    assert find_source(hit) == f"{paper.as_uri()}#page=2"
    assert find_source({"image_path": str(paper)}) is None
    assert find_source({"image_path": f"{paper.parent}/gone.pdf#page=2"}) is None
