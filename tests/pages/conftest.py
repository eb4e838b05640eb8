"""Windows for all tests of pages that open from the disk, as on a desktop and as on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MOST_MS = 60_000  # only a hang takes as long
WIDTHS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}


@dataclass
class Watched:
    """A page in the browser, and what it should not do: ask for anything but local files, and report errors."""

    page: Any
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def check(self) -> None:
        assert [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert self.complaints == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


OpenPage = Callable[..., Any]
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]


def is_phone(page: Any) -> bool:
    return bool(page.viewport_size["width"] < 600)


def press(target: Any) -> None:
    """Tap on a phone, click elsewhere."""
    target.tap() if is_phone(target.page) else target.click()


def grave_faults(page: Any) -> list[str]:
    """Return what axe-core finds serious or critical in the current page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python checks access")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"], "runOnly": RULES})
    return [
        f"{fault['id']}: {fault['help']}: {[node['html'][:200] for node in fault['nodes'][:3]]}"
        for fault in found.response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
def windows(browser: Any) -> Callable[[str], Watched]:
    """Give the window of a width; it is kept, since a new one takes a third of a second of CPU."""
    opened: dict[str, Watched] = {}

    def window(width: str) -> Watched:
        if width not in opened:
            context = browser.new_context(**WIDTHS[width], accept_downloads=True)
            context.set_default_timeout(MOST_MS)
            opened[width] = Watched(context.new_page())
            opened[width].watch()
        return opened[width]

    return window


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def visit(windows: Callable[[str], Watched]) -> Iterator[OpenPage]:
    """Give a function that opens a file at a width; at the end, no page may have had errors or other requests."""
    used: list[Watched] = []

    def open_file(path: Path, *, width: str = "desktop", scheme: str = "light") -> Any:
        watched = windows(width)
        watched.asked.clear()
        watched.complaints.clear()
        watched.page.bring_to_front()  # Chromium draws a window behind another once a second
        watched.page.emulate_media(color_scheme=scheme, media="screen")
        watched.page.goto(path.as_uri())
        used.append(watched)
        return watched.page

    yield open_file
    for watched in used:
        watched.check()


@pytest.fixture
def open_page(visit: OpenPage, width: str) -> OpenPage:
    """Give a function that opens a file at the width of a desktop and of a phone."""
    return lambda path, **options: visit(path, width=width, **options)
