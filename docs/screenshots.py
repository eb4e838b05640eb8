"""Writes docs/pictures/: the pages as they look now, over the demo's index, in headless Chromium. `make screenshots`.

Chromium comes from the system (Debian: apt-get install chromium); the map is the better one with clip-retrieval[map].
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from clip_retrieval import clip_filter
from clip_retrieval.demo.run import run_demo
from clip_retrieval.layout import MANIFEST
from clip_retrieval.map.config import MapConfig
from clip_retrieval.map.run import run_map
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2,
}  # fmt: skip
QUALITY = 82
HITS = 60
MOST_MS = 60_000
HAS_LOADED = "Array.from(document.images).every((image) => image.complete)"


@contextmanager
def open_page(browser: Browser, url: str, *, scheme: str = "light", **options: Any) -> Iterator[Page]:
    with browser.new_context(color_scheme=scheme, reduced_motion="reduce", **(options or DESKTOP)) as context:
        context.set_default_timeout(MOST_MS)
        page = context.new_page()
        page.goto(url)
        yield page


def shoot(page: Page, name: str) -> None:
    """Write what the page shows, once its pictures are there, as a WebP."""
    page.wait_for_load_state("networkidle")
    page.evaluate(
        f"new Promise((done) => {{ const look = () => {HAS_LOADED} ? done() : setTimeout(look, 50); look(); }})"
    )
    page.wait_for_timeout(600)  # pictures that fade in
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(PICTURES / f"{name}.webp", quality=QUALITY, method=6)
    print(f"{name}.webp: {(PICTURES / f'{name}.webp').stat().st_size:,} bytes")


def search(page: Page, *words: str) -> None:
    box = page.get_by_role("search").get_by_role("textbox")
    for word in words:
        box.fill(word)
        box.press("Enter")
    expect(page.locator("#hit-0 img")).to_have_class(re.compile("shown"))


def shoot_front(browser: Browser, index: Path) -> None:
    with listening(build_config(BackConfig, {"port": 0}, [str(index)])) as server:
        with open_page(browser, server.url) as page:
            search(page, "heart + dog - face")
            shoot(page, "front-light")
        with open_page(browser, server.url, scheme="dark") as page:
            search(page, "dog")
            page.locator("#hit-1").click()
            panel = page.get_by_role("region", name=re.compile(r"Picture \d+"))
            expect(panel.locator(".large img")).to_have_class(re.compile("shown"))
            shoot(page, "front-dark")
        with open_page(browser, server.url, scheme="dark", **PHONE) as page:
            search(page, "pizza")
            shoot(page, "front-phone")


def shoot_sheet(browser: Browser, page_url: str) -> None:
    with open_page(browser, page_url) as page:
        page.locator(".pick").nth(1).click()
        page.locator(".pick").nth(4).click()
        page.mouse.move(0, 0)
        shoot(page, "sheet")
    with open_page(browser, page_url, scheme="dark") as page:
        page.locator("#open-3").click()
        for told in page.locator("dialog dd").filter(has_text=str(ROOT)).all():
            told.evaluate("(node, root) => { node.textContent = node.textContent.replace(root, '') }", f"{ROOT}/")
        shoot(page, "sheet-picture")


def shoot_map(browser: Browser, page_url: str) -> None:
    with open_page(browser, page_url) as page:
        page.get_by_label("Find in captions").fill("face")
        shoot(page, "map")
    with open_page(browser, page_url, scheme="dark") as page:
        for _ in range(3):
            page.keyboard.press("+")
        shoot(page, "map-near")


def main(demo: Path) -> None:
    if not (demo / "index" / MANIFEST).exists():
        run_demo(str(demo))
    PICTURES.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=MOST_MS)
        index = demo / "index"
        clip_filter("dog", f"{folder}/dog", str(index), num_results=HITS)
        run_map(MapConfig(folder=str(index), output=f"{folder}/map.html", color="background"))
        shoot_front(browser, index)
        shoot_sheet(browser, f"file://{folder}/dog/index.html")
        shoot_map(browser, f"file://{folder}/map.html")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-run"))
