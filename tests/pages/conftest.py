"""A browser for all tests of pages, and pages that note what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MOST_MS = 60_000  # only a hang takes as long


@dataclass
class Watched:
    """A page in the browser, and what it should not do: ask for anything but files here, and complain."""

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


OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Give a function that opens a file in a fresh window; at the end every page has kept quiet and to itself."""
    opened: list[Watched] = []

    def open_file(path: Path, *, width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(MOST_MS)
        watched = Watched(context.new_page())
        watched.watch()
        watched.page.goto(path.as_uri())
        opened.append(watched)
        return watched.page

    yield open_file
    for watched in opened:
        watched.page.context.close()
    for watched in opened:
        watched.check()
