"""One real server and one real browser for all tests of the web page.

Features, and the words of their tests in test_page.py. Each test runs as on a desktop (1000 x 560, a mouse) and as on a
phone (360 x 740, a finger), or, marked *, looks at one page at both widths.

    search by text                       a_text_finds
    by a dropped, pasted, chosen picture a_picture_is_dropped
    more like this; parts added, taken   more_and_less_like; *signs_add
    captions, several indices, toggles   *toggles_captions, *an_index_that_is_not_there
    condition and its fault              *a_condition_is_made, *nothing_is_shown
    ten thousand hits, pages on the way  ten_thousand_hits
    broken pictures, hostile names       a_broken_picture
    panel, columns, neighbors            the_panel_shows; *the_panel_has_all_columns
    videos                               a_video_plays_from; a_video_that_no_browser_plays
    selection, downloads                 selected_hits_are_downloaded
    state in the address, back button    the_back_button; *a_link_says, *a_link_to_pictures
    light and dark                       *colors_go_by
    access (axe-core), nothing cut off   no_state_has
    away, killed, full, slow, refused    *a_server_that_is_killed, *that_is_full, *what_the_server_refuses
    keys of servers; old and other ones  *a_key_is_asked, *a_server_without_v1, *the_page_alone
    keyboard, order of Tab               keys_do_all, tab_goes (only on a desktop)

That nothing is asked elsewhere and the console stays quiet is checked after every test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_retrieval.demo.run import GALLERY
from clip_retrieval.index.build import build_indices
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.inference.run import clip_inference
from clip_retrieval.installed import is_installed
from clip_retrieval.layout import PICTURES_BELOW
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig, FrontConfig
from clip_retrieval.server.front import open_front
from clip_retrieval.server.listen import bind
from clip_retrieval.server.run import listening
from clip_retrieval.server.sockets import answering

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

TIMEOUT = 60_000  # ms; only a hang takes so long
WIDTHS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1000, "height": 560}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}
HOSTILE = (
    '<img src=x onerror="window.hurt = 1">',
    "<script>window.hurt = 1</script>",
    '"><svg onload=window.hurt=1>',
    "{@html '<img src=x onerror=window.hurt=1>'} ${window.hurt = 1}",
    "javascript:window.hurt=1",
    "\u202egnp.exe \u0000 \U0001f600",
)
ROWS = 10_000


@dataclass(frozen=True)
class Servers:
    """Where the page is, and where it is alone, asking the other."""

    url: str
    front: str


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the index of a quarter of the demo's gallery."""
    folder = tmp_path_factory.mktemp("gallery")
    clip_inference(
        str(GALLERY / "00000.tar"), str(folder / "embeddings"), input_format="webdataset", clip_model="demo",
        enable_metadata=True, device="cpu",
    )  # fmt: skip
    build_indices(IndexConfig(embeddings_folder=str(folder / "embeddings"), index_folder=str(folder / "index")))
    return folder / "index"


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> Path:
    """Give an index with captions and file names that look like markup, and with files that are not pictures."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "photos").mkdir()
    paths = [
        folder / "photos" / f"{place}{text.replace('/', '').replace(chr(0), '')[:40]}.jpg"
        for place, text in enumerate(HOSTILE)
    ]
    for place, path in enumerate(paths):
        if place % 3 == 0:
            path.write_bytes(b"no picture")
        else:
            Image.new("RGB", (60, 40), (place * 40, 90, 120)).save(path)
    rows = pd.DataFrame(
        {
            "caption": HOSTILE,
            "image_path": [str(path) for path in paths],
            "link": ["javascript:window.hurt=1"] * len(paths),
            "<b>name</b>": HOSTILE,
        }
    )
    index = write_index(folder / "index", rows)
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, PICTURES_BELOW: [str(folder / "photos")]}))
    return index


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> Path:
    """Give an index of ten thousand rows without pictures."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = pd.DataFrame({"caption": [f"row {place}" for place in range(ROWS)], "width": range(ROWS)})
    return write_index(tmp_path_factory.mktemp("many") / "index", rows, rows=vectors)


@pytest.fixture(scope="session")
def films(
    tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path], make_video: Callable[..., bytes]
) -> Path:
    """Give an index of frames: of a video that each browser plays, and of one that no browser plays."""
    folder = tmp_path_factory.mktemp("films")
    if is_installed("av"):
        (folder / "a.webm").write_bytes(make_video("red", "lime", "blue", "yellow", container="webm", codec="libvpx"))
        (folder / "b.avi").write_bytes(make_video("red", container="avi"))
    names = ("a.webm#t=2.2", "a.webm#t=0", "b.avi#t=0")
    rows = pd.DataFrame({"caption": ["sea", "sun", "old"], "image_path": [str(folder / name) for name in names]})
    index = write_index(folder / "index", rows)
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, PICTURES_BELOW: [str(folder)]}))
    return index


@pytest.fixture(scope="session")
def servers(
    gallery: Path, odd: Path, many: Path, films: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    names = tmp_path_factory.mktemp("served") / "indices_paths.json"
    folders = {"gallery": gallery, "odd": odd, "many": many, "films": films}
    names.write_text(json.dumps({name: str(folder) for name, folder in folders.items()}))
    with ExitStack() as stack:
        alone = stack.enter_context(bind(build_config(FrontConfig, {"port": 0}, []).access))
        front = f"http://127.0.0.1:{alone.getsockname()[1]}"
        back = build_config(BackConfig, {"port": 0, "reload_seconds": 0, "cors": (front,)}, [str(names)])
        url = stack.enter_context(listening(back)).url
        config = build_config(FrontConfig, {"default_backend": url, "default_index": "gallery"}, [])
        stack.enter_context(answering(alone, open_front(config), config.access, 1))
        yield Servers(url, front)


HAS_NOTHING_BEYOND_ITS_EDGE = "document.documentElement.scrollWidth <= innerWidth"


@dataclass
class Visit:
    """A window of the browser during one test, and what it must not do."""

    page: Page
    origins: list[str] = field(default_factory=list)
    may_fail: bool = False  # the test provokes answers that are errors, and Chromium logs them
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.faults.append(f"thrown: {error}"))
        self.page.on("console", lambda said: self.hear(said.type, said.text))
        self.page.on("request", lambda asked: self.check(asked.url))

    def hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.may_fail and text.startswith("Failed to load resource")):
            self.faults.append(f"said: {text}")

    def check(self, url: str) -> None:
        if not url.startswith(("about:", "data:", "blob:", *(f"{origin}/" for origin in self.origins))):
            self.faults.append(f"asked: {url}")

    def at_each_width(self) -> Iterator[None]:
        """Resize the window to each width; it stays as narrow as a phone's."""
        for options in WIDTHS.values():
            self.page.set_viewport_size(options["viewport"])
            yield
            assert self.page.evaluate(HAS_NOTHING_BEYOND_ITS_EDGE)

    def leave(self) -> None:
        """Clear what the page has kept, and leave the page, since it would go on trying to reach a server."""
        self.page.unroute_all()
        self.page.evaluate("sessionStorage.clear(); localStorage.clear()")
        if self.may_fail:
            self.page.goto("about:blank")


class Windows:
    """Windows by their width, kept between tests: a new one takes a third of a second of CPU."""

    def __init__(self, browser: Browser, servers: Servers) -> None:
        self.browser, self.servers = browser, servers
        self.contexts: dict[str, BrowserContext] = {}
        self.idle: dict[str, list[Visit]] = {width: [] for width in WIDTHS}
        self.used: list[tuple[str, Visit]] = []

    def open(
        self,
        path: str = "",
        *,
        at: str = "",
        width: str = "desktop",
        scheme: Literal["light", "dark"] = "light",
        may_fail: bool = False,
        also: tuple[str, ...] = (),
        routes: dict[str, Callable[[Route], None]] | None = None,
    ) -> Visit:
        if width not in self.contexts:
            self.contexts[width] = self.browser.new_context(
                **WIDTHS[width], reduced_motion="reduce", accept_downloads=True
            )
            self.contexts[width].set_default_timeout(TIMEOUT)
        if not self.idle[width]:
            fresh = Visit(self.contexts[width].new_page())
            fresh.watch()
            self.idle[width] = [fresh]
        visit = self.idle[width].pop()
        self.used.append((width, visit))
        page, origins = visit.page, [at or self.servers.url, *also]
        page.bring_to_front()  # Chromium draws a window behind another once a second
        if visit.origins and visit.origins != origins:
            page.goto("about:blank")  # requests of the last page belong to its own server
        visit.origins, visit.may_fail = origins, may_fail
        if page.viewport_size != WIDTHS[width]["viewport"]:
            page.set_viewport_size(WIDTHS[width]["viewport"])
        page.emulate_media(color_scheme=scheme)
        for pattern, answer in (routes or {}).items():
            page.route(pattern, answer)
        page.goto(f"{at or self.servers.url}/{path}")
        return visit

    def leave(self) -> list[str]:
        """Leave all windows; return the errors in them."""
        faults: list[str] = []
        while self.used:
            width, visit = self.used.pop()
            faults += visit.faults
            visit.leave()
            visit.faults = []
            self.idle[width].append(visit)
        return faults


@pytest.fixture(scope="module")
def windows(browser: Browser, servers: Servers) -> Windows:
    return Windows(browser, servers)


@pytest.fixture
def visit(windows: Windows) -> Iterator[Callable[..., Visit]]:
    """Give a function that opens a page of the server; after the test, nothing must have gone wrong in any."""
    yield windows.open
    assert windows.leave() == []


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_page(visit: Callable[..., Visit], width: str) -> Callable[..., Page]:
    """Give a function that opens a page at the width of a desktop and of a phone."""

    def opened(path: str = "", **options: Any) -> Page:
        return visit(path, width=width, **options).page

    return opened
