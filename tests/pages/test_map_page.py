"""The map in a browser, opened from the disk: points, thumbnails, finding, choosing with a lasso."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from tests.pages.conftest import OpenPage, grave_faults, is_phone, press

ROWS = 400
HOSTILE = "</script><img src=x onerror=\"document.title='ran'\">"
GROUND, RED, BLUE = [251, 250, 248], [11, 107, 203], [217, 115, 13]  # of the page, and of the two groups
GREEN = [20, 160, 60]  # of pictures of even rows


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a map whose even rows are left and whose odd rows are right; pictures of the even rows are green."""
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
    """Count the pixels of the map in about one color, after it was repainted."""
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


@dataclass
class Finger:
    """A finger on the glass, which Playwright can only tap with."""

    session: Any

    def send(self, kind: str, *points: tuple[int, int]) -> None:
        touched = [{"x": x, "y": y} for x, y in points]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    def move(self, x: int, y: int) -> None:
        self.send("touchMove", (x, y))


@contextmanager
def touching(page: Any, start: tuple[int, int]) -> Iterator[Finger]:
    """Put a finger down, and lift it at the end of the block."""
    finger = Finger(page.context.new_cdp_session(page))
    finger.send("touchStart", start)
    yield finger
    page.wait_for_timeout(300)  # a finger that is lifted while it moves flings, and the next tap only ends that
    finger.send("touchEnd")


def open_map(open_page: OpenPage, path: Path, **options: Any) -> Any:
    page = open_page(path, **options)
    expect(page.locator("main > canvas")).to_have_attribute("data-frames", re.compile("."))
    return page


def test_points_are_drawn_in_the_colors_of_the_legend_and_thumbnails_come_near(
    open_page: OpenPage, drawn: Path
) -> None:
    page = open_map(open_page, drawn)
    least = 100 if is_phone(page) else 500
    assert colors_near(page, RED) > least
    assert colors_near(page, BLUE) > least
    assert page.locator("section button").all_text_contents() == ["even200", "odd200"]
    press(page.locator("section button").first)
    expect(page.get_by_role("status").first).to_have_text("200 matches")
    assert colors_near(page, BLUE) < 50
    assert colors_near(page, RED) > least
    press(page.locator("section button").first)
    assert colors_near(page, GREEN) < 50
    press(page.get_by_label("Closer"))
    press(page.get_by_label("Closer"))
    if is_phone(page):
        with touching(page, (180, 300)) as finger:
            finger.move(260, 300)
    else:
        page.mouse.move(640, 400)
        page.keyboard.press("ArrowLeft")
    assert colors_near(page, GREEN) > 1000
    press(page.get_by_label("Everything"))
    for _ in range(300):  # the finger's last move may be painted later
        if colors_near(page, GREEN) < 50:
            return
        page.wait_for_timeout(100)
    pytest.fail("the map stayed near")


def test_captions_that_hold_the_words_are_listed_and_a_hostile_one_runs_nothing(
    open_page: OpenPage, drawn: Path
) -> None:
    page = open_map(open_page, drawn, scheme="dark")
    box = page.get_by_label("Find in captions")
    box.fill("CAT 39")
    expect(page.get_by_role("status").first).to_have_text("9 matches")
    press(page.get_by_role("button", name="List"))
    listed = page.locator("aside")
    expect(listed.locator("h2")).to_have_text("9 points")
    assert listed.locator(".name").all_text_contents()[:2] == ["cat 39", "cat 139"]
    assert grave_faults(page) == []
    box.fill("onerror")
    press(page.get_by_role("button", name="List"))
    expect(listed.locator(".name")).to_have_text(HOSTILE)
    press(listed.locator("li button"))
    tip = page.locator(".tip")
    expect(tip).to_contain_text(HOSTILE)
    expect(tip).to_contain_text("id 0 \u00b7 even")
    expect(tip).to_be_in_viewport(ratio=1)
    assert "ran" not in page.title().split()
    press(page.get_by_label("Clear the selection"))
    expect(listed).to_have_count(0)
    expect(tip).to_have_count(0)


def test_a_lasso_chooses_points_and_gives_their_ids(open_page: OpenPage, drawn: Path) -> None:
    page = open_map(open_page, drawn)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    press(page.get_by_label("Choose with a lasso"))
    size = page.viewport_size
    left, right, top, bottom = size["width"] // 2 + 2, size["width"] - 10, 90, size["height"] - 20
    corners = ((right, top), (right, bottom), (left, bottom))
    if is_phone(page):
        with touching(page, (left, top)) as finger:
            for x, y in corners:
                finger.move(x, y)
    else:
        page.mouse.move(left, top)
        page.mouse.down()
        for x, y in corners:
            page.mouse.move(x, y, steps=3)
        page.mouse.up()
    panel = page.locator("aside")
    expect(panel.locator("h2")).to_have_text("200 points")
    press(panel.get_by_role("button", name="Copy ids"))
    page.wait_for_function("window.copied")
    copied = [int(number) for number in page.evaluate("copied").split("\n")]
    assert copied in ([*range(0, ROWS, 2)], [*range(1, ROWS, 2)])
    with page.expect_download() as download:
        press(panel.get_by_role("button", name="Download"))
    assert Path(download.value.path()).read_text().split() == [str(number) for number in copied]


def test_keys_find_captions_and_close_the_list(visit: OpenPage, drawn: Path) -> None:
    page = open_map(visit, drawn)
    page.keyboard.press("/")
    page.keyboard.type("cat 39")
    page.keyboard.press("Enter")
    expect(page.locator("aside h2")).to_have_text("9 points")
    page.locator("aside li button").first.focus()
    page.keyboard.press("Escape")
    expect(page.locator("aside")).to_have_count(0)
