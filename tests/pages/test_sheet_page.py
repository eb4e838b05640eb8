"""The sheet in a browser, opened from the disk: finding, ordering, choosing and looking at a thousand hits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")
from PIL import Image
from playwright.sync_api import expect

from clip_retrieval import clip_filter
from tests.pages.conftest import OpenPage, grave_faults, is_phone, press

MANY, FEW = 1000, 60
HOSTILE = "</script><img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an index whose row r is the r-th hit of its query.npy; every tenth is a cat, the 60th is hostile."""
    folder = tmp_path_factory.mktemp("sheet")
    Image.new("RGB", (64, 48), (200, 40, 40)).save(folder / "red.png")
    Image.new("RGB", (48, 64), (40, 40, 200)).save(folder / "blue.png")
    names = [f"{'cat' if row % 10 == 0 else 'dog'}-{row:04d}" for row in range(MANY)]
    names[FEW - 1] = HOSTILE
    metadata = pd.DataFrame(
        {
            "caption": names,
            "image_path": [str(folder / ("red.png" if row % 2 else "blue.png")) for row in range(MANY)],
            "label": ["animal" if row % 4 else "pet" for row in range(MANY)],
            "size": [row * 7 % FEW for row in range(MANY)],
        }
    )
    (folder / "index" / "metadata").mkdir(parents=True)
    metadata.to_parquet(folder / "index" / "metadata" / "metadata_0.parquet")
    angles = np.linspace(0, 1.5, MANY)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    index = faiss.IndexFlatIP(2)
    index.add(rows)
    faiss.write_index(index, str(folder / "index" / "image.index"))
    np.save(folder / "query.npy", rows[0])
    return folder / "index"


def write_sheet(index: Path, count: int) -> Path:
    folder = index.parent / str(count)
    clip_filter(str(index.parent / "query.npy"), str(folder), str(index), num_results=count, export="symlink")
    return folder / "index.html"


@pytest.fixture(scope="module")
def sheet(index: Path) -> Path:
    return write_sheet(index, FEW)


def expect_hits(page: Any, told: str) -> None:
    expect(page.locator("header [role=status]")).to_contain_text(told)


def names(page: Any) -> list[str]:
    found: list[str] = page.locator("li.card .name").all_text_contents()
    return found


def test_a_thousand_hits_are_shown_and_only_those_near_are_drawn_until_it_prints(visit: OpenPage, index: Path) -> None:
    page = visit(write_sheet(index, MANY))
    expect_hits(page, "1,000 hits")
    page.locator("#open-0").focus()
    page.keyboard.press("End")
    expect(page.locator("#open-999")).to_be_focused()
    assert page.locator("li.card").count() < 200  # the others are not drawn
    page.keyboard.press("/")
    page.keyboard.type("CAT-00")
    expect_hits(page, "10 of 1,000 hits")
    page.keyboard.press("Escape")
    expect_hits(page, "\u00b7 1,000 hits")
    page.keyboard.type("cat")
    expect_hits(page, "100 of 1,000 hits")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator("li.card")).to_have_count(100)
    expect(page.locator(".tools")).to_be_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("li.card").count() < 100


def test_the_filter_box_finds_hits_and_a_hostile_caption_runs_nothing(open_page: OpenPage, sheet: Path) -> None:
    page = open_page(sheet)
    box = page.get_by_label("Filter these hits")
    box.fill(box.get_attribute("placeholder"))
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    press(page.get_by_role("button", name="Show all"))
    expect_hits(page, "\u00b7 60 hits")
    box.fill("CAT-00")
    expect_hits(page, "6 of 60 hits")
    assert names(page) == [f"cat-{row:04d}" for row in range(0, 60, 10)]
    box.fill("onerror")
    expect_hits(page, "1 of 60")
    assert names(page) == [HOSTILE]
    press(page.locator("li.card .open"))
    assert page.locator("dialog h2").inner_text() == HOSTILE
    assert "ran" not in page.title().split()
    assert page.locator("script").count() == 1


def test_hits_are_sorted_by_any_column_and_the_other_way_round(open_page: OpenPage, sheet: Path) -> None:
    page = open_page(sheet)
    ranks = page.locator("li.card b")
    page.get_by_label("Sort by").select_option("size")
    expect(ranks.nth(1)).not_to_have_text("2")
    order = sorted(range(FEW), key=lambda row: row * 7 % FEW)
    shown = [int(rank) - 1 for rank in ranks.all_text_contents()]
    assert shown == order[: len(shown)]
    press(page.get_by_label("Reverse the order"))
    expect(ranks.first).to_have_text(str(order[-1] + 1))
    shown = [int(rank) - 1 for rank in ranks.all_text_contents()]
    assert shown == order[::-1][: len(shown)]


def test_facets_narrow_the_hits_and_count_them(open_page: OpenPage, sheet: Path) -> None:
    page = open_page(sheet)
    chips = page.get_by_role("group", name="label").get_by_role("button")
    assert chips.all_text_contents() == ["animal 45", "pet 15"]
    press(chips.nth(1))
    expect_hits(page, "15 of 60")
    page.get_by_label("Filter these hits").fill("cat")
    expect_hits(page, "3 of 60")
    assert chips.all_text_contents() == ["animal 3", "pet 3"]


def test_selected_paths_are_copied_in_the_order_of_the_hits(open_page: OpenPage, sheet: Path) -> None:
    page = open_page(sheet)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    picks = page.locator(".pick input")
    bar = page.locator(".said")
    if is_phone(page):
        picks.nth(3).tap()
        page.get_by_role("button", name="Range").tap()
        page.locator("li.card .open").nth(1).tap()
        expect(page.get_by_role("button", name="Range")).to_have_attribute("aria-pressed", "false")
    else:
        picks.nth(3).check()
        picks.nth(1).click(modifiers=["Shift"])
    expect(bar).to_contain_text("3 selected")
    for name in ("Range", "Copy paths", "Copy ids", "Clear the selection"):
        expect(bar.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    assert grave_faults(page) == []
    press(page.get_by_role("button", name="Copy paths"))
    expect(bar).to_contain_text("3 paths copied")
    assert [path.rpartition("/")[2] for path in page.evaluate("copied").split("\n")] == [
        "red.png",
        "blue.png",
        "red.png",
    ]
    press(page.get_by_role("button", name="Copy ids"))
    expect(bar).to_contain_text("3 ids copied")
    assert page.evaluate("copied") == "1\n2\n3"
    press(page.get_by_label("Clear the selection"))
    assert page.locator(".said.is-shown .number").count() == 0


def test_a_click_shows_the_whole_picture_with_its_metadata_and_leads_on(open_page: OpenPage, sheet: Path) -> None:
    page = open_page(sheet, scheme="dark")
    press(page.locator("li.card .open").nth(1))
    picture = page.locator("dialog img")
    picture.evaluate("(image) => image.decode()")
    assert picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [64, 48]
    assert "images/00002_red.png" in picture.get_attribute("src")
    told = page.locator("dialog dl").inner_text().split("\n")
    assert told[told.index("label") + 1] == "animal"
    assert told[told.index("id") + 1] == "1"
    dialog = page.get_by_role("dialog", name="dog-0002")
    if is_phone(page):
        page.get_by_role("button", name="Next").tap()
        dialog.wait_for()
        assert grave_faults(page) == []
        dialog.get_by_role("button", name="Close").tap()
        expect(page.locator("#open-2")).to_be_focused()
        return
    page.keyboard.press("ArrowRight")
    dialog.wait_for()
    assert grave_faults(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("#open-2")).to_be_focused()
    page.keyboard.press(" ")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#open-3")).to_be_focused()
    assert page.locator(".pick input").nth(2).is_checked()
