"""The map in a browser, opened from the disk: points, thumbnails, finding, choosing with a lasso."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")
from PIL import Image
from playwright.sync_api import expect

from clip_retrieval.map.config import MapConfig
from clip_retrieval.map.run import run_map

ROWS = 400
HOSTILE = "</script><img src=x onerror=\"document.title='ran'\">"
GROUND, RED, BLUE = [251, 250, 248], [11, 107, 203], [217, 115, 13]  # of the page, and of the two groups
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a map whose even rows lie left, whose odd rows lie right; pictures of the even ones are green."""
    folder = tmp_path_factory.mktemp("map")
    Image.new("RGB", (64, 64), (20, 160, 60)).save(folder / "even.png")
    Image.new("RGB", (64, 64), (160, 20, 160)).save(folder / "odd.png")
    metadata = pd.DataFrame(
        {
            "caption": [HOSTILE if row == 0 else f"{'cat' if row % 2 else 'dog'} {row}" for row in range(ROWS)],
            "image_path": [str(folder / ("odd.png" if row % 2 else "even.png")) for row in range(ROWS)],
            "group": ["odd" if row % 2 else "even" for row in range(ROWS)],
        }
    )
    (folder / "index" / "metadata").mkdir(parents=True)
    metadata.to_parquet(folder / "index" / "metadata" / "metadata_0.parquet")
    angles = np.random.default_rng(0).normal(scale=0.1, size=ROWS) + np.where(np.arange(ROWS) % 2, 1.4, 0)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    index = faiss.IndexFlatIP(2)
    index.add(rows)
    faiss.write_index(index, str(folder / "index" / "image.index"))
    page = folder / "map.html"
    run_map(MapConfig(folder=str(folder / "index"), output=str(page), layout="pca", color="group"))
    return page


def colors_near(page: Any, color: list[int]) -> int:
    """Count the pixels of the map in about one color, once it was painted anew."""
    count: int = page.evaluate(
        """async ([r, g, b]) => {
          for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
          const canvas = document.querySelector("main > canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4)
            count += Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 60;
          return count;
        }""",
        color,
    )
    return count


def open_map(open_page: OpenPage, path: Path, **options: Any) -> Any:
    page = open_page(path, **options)
    expect(page.locator("main > canvas")).to_have_attribute("data-frames", re.compile("."))
    return page


def test_points_are_drawn_in_the_colors_of_the_legend(open_page: OpenPage, drawn: Path) -> None:
    page = open_map(open_page, drawn)
    assert colors_near(page, RED) > 500
    assert colors_near(page, BLUE) > 500
    assert page.locator("section button").all_text_contents() == ["even200", "odd200"]
    page.locator("section button").first.click()
    expect(page.get_by_role("status").first).to_have_text("200 matches")
    assert colors_near(page, BLUE) < 50
    assert colors_near(page, RED) > 500


def test_thumbnails_come_when_the_map_is_near(open_page: OpenPage, drawn: Path) -> None:
    page = open_map(open_page, drawn)
    green = [20, 160, 60]
    assert colors_near(page, green) < 50
    page.get_by_label("Closer").click()
    page.get_by_label("Closer").click()
    page.mouse.move(640, 400)
    page.keyboard.press("ArrowLeft")
    assert colors_near(page, green) > 1000
    page.get_by_label("Everything").click()
    assert colors_near(page, green) < 50


def test_captions_that_hold_the_words_light_up_and_can_be_listed(open_page: OpenPage, drawn: Path) -> None:
    page = open_map(open_page, drawn, width=390, height=844, color_scheme="dark")
    page.keyboard.press("/")
    page.keyboard.type("CAT 39")
    expect(page.get_by_role("status").first).to_have_text("9 matches")
    page.keyboard.press("Enter")
    expect(page.locator("aside h2")).to_have_text("9 points")
    assert page.locator("aside .name").all_text_contents()[:2] == ["cat 39", "cat 139"]
    page.locator("aside li button").first.click()
    page.keyboard.press("Escape")
    expect(page.locator("aside")).to_have_count(0)


def test_a_lasso_chooses_points_and_gives_their_ids(open_page: OpenPage, drawn: Path) -> None:
    page = open_map(open_page, drawn)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.get_by_label("Choose with a lasso").click()
    page.mouse.move(642, 90)
    page.mouse.down()
    for x, y in ((1270, 90), (1270, 780), (642, 780)):
        page.mouse.move(x, y, steps=3)
    page.mouse.up()
    panel = page.locator("aside")
    expect(panel.locator("h2")).to_have_text("200 points")
    panel.get_by_role("button", name="Copy ids").click()
    expect(panel.get_by_role("status")).to_have_text("Copied")
    copied = [int(number) for number in page.evaluate("copied").split("\n")]
    assert copied in ([*range(0, ROWS, 2)], [*range(1, ROWS, 2)])
    with page.expect_download() as download:
        panel.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_text().split() == [str(number) for number in copied]


def test_the_mouse_tells_what_a_point_is_and_a_hostile_caption_runs_nothing(open_page: OpenPage, drawn: Path) -> None:
    page = open_map(open_page, drawn)
    page.get_by_label("Find in captions").fill("onerror")
    page.get_by_role("button", name="List").click()
    expect(page.locator("aside .name")).to_have_text(HOSTILE)
    page.locator("aside li button").click()
    expect(page.locator(".tip")).to_contain_text(f"{HOSTILE}")
    expect(page.locator(".tip")).to_contain_text("id 0 \u00b7 even")
    assert "ran" not in page.title().split()


def test_the_map_has_no_serious_fault_for_people_with_other_senses(open_page: OpenPage, drawn: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_map(open_page, drawn, color_scheme="dark")
    page.get_by_label("Find in captions").fill("cat 39")
    page.get_by_role("button", name="List").click()
    found = axe.Axe().run(page).response["violations"]
    assert [
        (one["id"], one["nodes"][0]["html"][:80]) for one in found if one["impact"] in ("serious", "critical")
    ] == []
