"""Pages of PDFs: their names, pictures and texts, and what is wrong with a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_retrieval.errors import ImageError
from clip_retrieval.media.pdf import Document, count_pages, picture_of_page, tidy
from clip_retrieval.media.places import MOST_LETTERS, in_place_order, place_path, split_place

MakePdf = Callable[..., bytes]
PASSWORD = f"/Encrypt<</Filter/Standard/V 2/R 3/Length 128/P -4/O<{'1f' * 32}>/U<{'2e' * 32}>>>/ID[<01><02>]"


def reason_of(data: bytes, page: int | None = 1) -> str:
    with pytest.raises(ImageError) as refused:
        Document(data).render(page, lambda *size: size)
    return refused.value.reason


def test_a_path_of_a_page_is_taken_apart_as_it_was_made() -> None:
    for document in ("a.pdf", "A.PDF", "x.pdf#page=2/a b.pdf", "d/\udc80.pdf", "two\nlines.pdf", "a.pdf#page=3.pdf"):
        assert split_place(place_path(document, 12)) == (document, 12)
    for path in ("a.pdf", "a.pdf#page=0", "a.pdf#page=01", "a.jpg#page=1", "a.pdf#page=1.jpg", "table.parquet#3"):
        assert split_place(path) is None


def test_page_ten_comes_after_page_two_and_before_the_next_file() -> None:
    paths = ["b.jpg", "a.pdf.jpg", "a.pdf#page=10", "a.pdf#page=2"]
    assert sorted(paths, key=in_place_order) == ["a.pdf#page=2", "a.pdf#page=10", "a.pdf.jpg", "b.jpg"]


def test_a_page_is_drawn_on_white_at_the_size_asked_for(make_pdf: MakePdf) -> None:
    image = Document(make_pdf("")).render(1, lambda width, height: (2 * width, 2 * height))
    assert (image.mode, image.size) == ("RGB", (400, 600))
    pixels = np.asarray(image)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[-60, 60].tolist() == [0, 128, 51]  # 0.0 0.5 0.2, counted from below; red stays red


def test_the_text_of_a_page_is_one_bounded_line(make_pdf: MakePdf) -> None:
    document = Document(make_pdf("two  words", "", r"a\rb"))
    assert [document.text(page) for page in (1, 2)] == ["two words", ""]
    assert tidy("a\x00 di\ufffe\r\nvided\n\n\ud800word\u00ad ") == "a divided word"
    assert len(tidy("x y" * MOST_LETTERS)) <= MOST_LETTERS


def test_each_fault_has_its_reason(make_pdf: MakePdf) -> None:
    whole = make_pdf("one")
    assert reason_of(b"") == "empty"
    assert reason_of(b"not a PDF") == "decode"
    assert reason_of(whole[:100]) == "decode"
    assert reason_of(make_pdf("one", trailer=PASSWORD)) == "encrypted"
    assert reason_of(make_pdf("x", box="0 0 10000 10000")) == "too_large"
    assert reason_of(whole, page=2) == "decode"
    assert reason_of(make_pdf()) == "decode"


def test_whatever_a_damaged_page_makes_the_library_raise_is_told_of(make_pdf: MakePdf) -> None:
    document = Document(make_pdf("one"))
    with pytest.raises(ImageError, match=r"the page cannot be read: .* by zero") as refused:
        document.render(1, lambda width, height: (width // 0, height))
    assert refused.value.reason == "decode"
    assert document.text(1) == "one"


def test_more_pages_than_can_be_true_are_refused(make_pdf: MakePdf, tmp_path: Path) -> None:
    data = make_pdf("one").replace(b"/Count 1>>", b"/Count 1000000>>")
    (tmp_path / "a.pdf").write_bytes(data)
    assert count_pages(str(tmp_path / "a.pdf")) == 0
    assert reason_of(data) == "too_large"


def test_a_shown_page_is_a_png_with_the_side_asked_for(make_pdf: MakePdf, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf("one"))
    image = Image.open(io.BytesIO(picture_of_page(str(tmp_path / "a.pdf"), 1, 150)))
    assert (image.format, max(image.size)) == ("PNG", 150)
