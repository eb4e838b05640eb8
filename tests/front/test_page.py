"""What the page shows and how it is worked with: grid, panel, keys, downloads, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="the web page is tested through playwright")
from playwright.sync_api import Page, Route, expect

from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening

OpenPage = Callable[..., Page]
Open = Callable[..., Any]  # to a Visit of conftest.py
ROWS = 10_000  # of the index `many`
KEY = "a-key-of-sixteen-characters"
FOCUSED = "(document.activeElement.id || document.activeElement.innerText || document.activeElement.ariaLabel).trim()"
SCROLL_DOWN = """() => {
    const down = () => { scrollTo(0, document.body.scrollHeight); window.down = setTimeout(down, 30); };
    down();
}"""


def tile(page: Page, place: int) -> Any:
    return page.locator(f"#hit-{place}")


def has_loaded(page: Page, place: int) -> None:
    expect(tile(page, place).locator("img")).to_have_class(re.compile("shown"))


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, headers=headers, json={"message": message})


def test_the_panel_shows_a_hit_and_leads_on(open_page: OpenPage) -> None:
    page = open_page("?q=dog")
    has_loaded(page, 1)
    tile(page, 1).click()
    panel = page.get_by_role("region", name=re.compile(r"Picture \d+"))
    expect(panel).to_be_focused()
    expect(panel.get_by_role("heading", level=2)).to_contain_text("dog")
    expect(panel.locator(".large img")).to_have_class(re.compile("shown"))
    for name in ("similarity", "image_path", "emoji", "rotation_degrees"):
        expect(panel.get_by_role("term").filter(has_text=re.compile(f"^{name}$"))).to_be_visible()
    neighbors = panel.get_by_role("button", name=re.compile("^Open "))
    expect(neighbors).to_have_count(18)
    first = page.url
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(first)
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(first)
    neighbors.first.click()
    expect(page).not_to_have_url(first)
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(tile(page, 1)).to_be_focused()


def test_keys_do_all(visit: Open) -> None:
    page = visit("?q=dog").page
    expect(tile(page, 8)).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_role("textbox", name="Search")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(tile(page, 0)).to_be_focused()
    columns = int(page.get_by_role("grid").get_attribute("aria-colcount") or 0)
    for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
        page.keyboard.press(key)
        expect(tile(page, place)).to_be_focused()
    page.keyboard.press("Space")
    expect(tile(page, 0)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Space")
    expect(page.get_by_role("region", name="Selection")).to_contain_text("3 selected")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name=re.compile("Picture"))).to_be_focused()
    page.keyboard.press("Escape")
    expect(tile(page, 2)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("region", name="Selection")).to_have_count(0)
    page.keyboard.press("m")
    expect(page).to_have_url(re.compile(r"\?q=id%3A\d+&build="))


def test_tab_goes_from_the_box_over_the_filters_to_one_picture(visit: Open) -> None:
    page = visit("?q=dog").page
    expect(tile(page, 0)).to_be_visible()
    page.keyboard.press("/")
    names: list[str] = []
    while not (names and names[-1].startswith("hit-")):
        page.keyboard.press("Tab")
        names.append(page.evaluate(FOCUSED))
        assert len(names) < 20, names
    assert names[-1] == "hit-0"
    assert [name for name in names if name in ("Search", "Captions", "Varied", "Download")] == [
        "Search",
        "Captions",
        "Varied",
        "Download",
    ]


def test_ten_thousand_hits_scroll_and_few_are_there_at_once(visit: Open) -> None:
    page = visit("?index=many&q=dog").page
    expect(tile(page, 0)).to_be_visible()
    bottom = page.get_by_text(f"{ROWS:,} hits")
    page.evaluate(SCROLL_DOWN)
    expect(bottom).to_have_count(1)
    page.evaluate("() => { clearTimeout(window.down); scrollTo(0, document.body.scrollHeight); }")
    expect(tile(page, ROWS - 1)).to_be_visible()
    assert page.get_by_role("gridcell").count() < 150
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    expect(tile(page, ROWS - 1)).to_have_count(0)
    expect(page.get_by_role("grid")).to_have_attribute("aria-rowcount", re.compile(r"^[1-9]\d+$"))


def test_selected_hits_are_downloaded(visit: Open) -> None:
    page = visit("?q=dog").page
    has_loaded(page, 0)
    for place in (0, 2):
        tile(page, place).hover()
        tile(page, place).get_by_role("button", name="Select").click()
    bar = page.get_by_role("region", name="Selection")

    def save(name: str) -> bytes:
        bar.get_by_role("button", name="Download").click()
        with page.expect_download() as saved:
            bar.get_by_role("button", name=name).click()
        return Path(saved.value.path()).read_bytes()

    rows = json.loads(save("JSON"))
    assert [sorted(row)[:3] for row in rows] == [["background", "caption", "code_point"]] * 2
    ids = [row["id"] for row in rows]
    assert save("Ids").decode().split() == [str(row_id) for row_id in ids]
    table = list(csv.DictReader(io.StringIO(save("CSV").decode())))
    assert [(int(row["id"]), row["caption"]) for row in table] == [(row["id"], row["caption"]) for row in rows]
    with zipfile.ZipFile(io.BytesIO(save("Zip of pictures"))) as packed:
        assert packed.testzip() is None
        assert sorted(packed.namelist()) == [f"0000{place + 1}_{row_id}.jpg" for place, row_id in enumerate(ids)] + [
            "hits.json"
        ]
        assert json.loads(packed.read("hits.json")) == rows


def test_a_broken_picture_is_a_tile_with_its_caption_and_markup_is_only_text(open_page: OpenPage) -> None:
    page = open_page("?index=odd&q=%3Cimg+src%3Dx+onerror%3Dwindow.hurt%3D1%3E", may_fail=True)
    expect(page.get_by_role("gridcell")).to_have_count(6)
    broken = page.locator(".tile").filter(has=page.locator(".caption", has_text=re.compile("^<img")))
    expect(broken.locator(".missing")).to_have_text('<img src=x onerror="window.hurt = 1">')
    boxes = [place.bounding_box() for place in page.locator(".tile").all()]
    assert len({round(box["height"]) for box in boxes if box}) == 1
    broken.click()
    panel = page.get_by_role("region", name=re.compile("Picture"))
    expect(panel.get_by_role("heading", level=2)).to_have_text('<img src=x onerror="window.hurt = 1">')
    expect(panel.get_by_text("<b>name</b>")).to_be_visible()
    expect(panel.get_by_role("button", name=re.compile("^Open"))).to_have_count(5)
    assert page.locator("a[href^=javascript], b, script:not([src]), main svg[onload]").count() == 0
    page.get_by_role("button", name="Close", exact=True).click()
    page.goto(
        f"{page.url.partition('?')[0]}?index=odd&where=%3Cscript%3Ewindow.hurt%3D1%3C%2Fscript%3E&q=%3Cscript%3Ewindow.hurt%3D1%3C%2Fscript%3E"
    )
    expect(page.get_by_role("alert")).to_contain_text("syntax error")
    assert page.evaluate("window.hurt") is None


@contextmanager
def held_port() -> Iterator[int]:
    """Keep a port for servers that come and go: nobody else is given it meanwhile."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_a_server_that_goes_away_and_comes_back(visit: Open, odd: Path) -> None:
    with held_port() as port, ExitStack() as later:
        config = build_config(BackConfig, {"port": port, "reload_seconds": 0}, [str(odd)])
        with listening(config) as server:
            page = visit("?q=dog", at=server.url, may_fail=True).page
            expect(page.get_by_role("gridcell")).to_have_count(6)
        page.get_by_role("textbox", name="Search").fill("cat")
        page.keyboard.press("Enter")
        expect(page.get_by_text("The server is away.")).to_be_visible()
        expect(page.get_by_text(re.compile(r"Trying again in \d+ s\."))).to_be_visible()
        later.enter_context(listening(config))
        expect(page.get_by_text("The server is away.")).to_have_count(0)
        expect(page.get_by_role("gridcell")).to_have_count(6)
        expect(page).to_have_title("cat · clip-retrieval")


@pytest.mark.parametrize(
    ("status", "said"),
    [(429, "The server is full. Too many requests are waiting"), (503, "The server is not ready yet.")],
)
def test_a_server_that_is_full_or_not_ready_is_asked_again(visit: Open, status: int, said: str) -> None:
    opened = visit("", may_fail=True)
    page = opened.page
    expect(page.get_by_role("button", name="Pictures")).to_be_visible()
    page.route("**/v1/search", refuse(status, "too many requests are waiting", {"retry-after": "60"}), times=1)
    page.get_by_role("textbox", name="Search").fill("dog")
    page.keyboard.press("Enter")
    expect(page.get_by_text(said)).to_be_visible()
    expect(page.get_by_text(re.compile(r"Trying again in \d\d s\."))).to_be_visible()
    page.get_by_role("button", name="Try now").click()
    expect(tile(page, 0)).to_be_visible()
    expect(page.get_by_text(said)).to_have_count(0)


def test_a_slow_server_and_a_fault_are_told(visit: Open) -> None:
    page = visit("", may_fail=True).page
    expect(page.get_by_role("button", name="Pictures")).to_be_visible()
    held: list[Route] = []
    page.route("**/v1/search", lambda route: held.append(route), times=1)
    page.get_by_role("textbox", name="Search").fill("dog")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Searching…")).to_be_visible()
    expect(page.get_by_text("Still searching: the server takes its time.")).to_be_visible()
    held[0].fulfill(status=500, json={"message": "Internal Server Error"})
    expect(page.get_by_text("Something broke. Internal Server Error")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(tile(page, 0)).to_be_visible()


def test_what_the_server_refuses_is_said_in_its_words(visit: Open) -> None:
    page = visit("?q=qwertyzxcv", may_fail=True).page
    expect(page.get_by_text(re.compile("That cannot be answered. The model demo knows no word"))).to_be_visible()


def test_a_key_is_asked_for_and_opens_pictures_too(visit: Open, odd: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    options = {"port": 0, "reload_seconds": 0, "api_key_file": str(tmp_path / "keys")}
    with listening(build_config(BackConfig, options, [str(odd)])) as server:
        page = visit("?q=javascript%3Awindow.hurt%3D1", at=server.url, may_fail=True).page
        dialog = page.get_by_role("dialog", name="This server wants a key")
        dialog.get_by_label("Key").fill("a wrong key of some length")
        page.keyboard.press("Enter")
        expect(dialog.get_by_text("The key was not accepted.")).to_be_visible()
        dialog.get_by_label("Key").fill(KEY)
        dialog.get_by_role("button").click()
        expect(dialog).to_have_count(0)
        expect(tile(page, 0).locator("img")).to_have_attribute("src", re.compile("^blob:"))
        has_loaded(page, 0)
        assert KEY not in page.url
        page.reload()
        has_loaded(page, 0)


def test_a_server_without_v1_is_asked_as_clip_retrieval_2_was(visit: Open, width: str) -> None:
    visited = visit("", width=width, may_fail=True)
    page = visited.page
    page.route("**/v1/**", refuse(404, "nothing"))
    page.goto(f"{visited.origins[0]}/?q=dog")
    has_loaded(page, 0)
    for name in ("Varied", "Surely there", "Condition"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_role("button", name="No near-duplicates")).to_be_visible()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_text(re.compile(r"^(1[2-9]\d|[2-9]\d\d)\+? hits$"))).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    tile(page, 1).click()
    panel = page.get_by_role("region", name=re.compile("Picture"))
    expect(panel.get_by_role("button", name=re.compile("^Open ")).first).to_be_visible()
    panel.get_by_role("button", name="More like this").click()
    expect(page).to_have_url(re.compile(r"\?q=pic%3A\w+$"))
    has_loaded(page, 0)


def test_the_page_alone_asks_the_server_elsewhere(visit: Open, servers: Any) -> None:
    visited = visit("", at=servers.front, may_fail=True)
    visited.origins.append(servers.url)
    visited.faults.clear()  # of requests before the line above
    page = visited.page
    page.goto(f"{servers.front}/?q=dog")
    has_loaded(page, 0)
    page.goto(f"{servers.front}/?q=dog&back=http://127.0.0.1:9")
    expect(page.get_by_text("The server is away.")).to_be_visible()
    visited.faults[:] = [
        fault for fault in visited.faults if "Content Security Policy" not in fault and ":9/" not in fault
    ]


def test_a_link_to_pictures_of_an_older_build_says_so(visit: Open) -> None:
    page = visit("?q=id:3&build=0123456789abcdef").page
    expect(page.get_by_text("The index was built anew")).to_be_visible()
    page.get_by_role("button", name="Search anyway").click()
    has_loaded(page, 0)


def test_colors_go_by_the_system_and_by_choice(visit: Open) -> None:
    def is_dark(page: Page) -> bool:
        return bool(
            page.evaluate("parseInt(getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0]) < 80")
        )

    light = visit("").page
    assert not is_dark(light)
    for name, dark in (("light", False), ("dark", True)):
        light.get_by_role("button", name="Colors").click()
        expect(light.get_by_role("button", name=f"Colors: {name}")).to_be_visible()
        assert is_dark(light) == dark
    light.reload()
    expect(light.get_by_role("button", name="Colors: dark")).to_be_visible()
    assert is_dark(light)
    assert is_dark(visit("", color_scheme="dark").page)


@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_no_state_has_a_serious_fault_of_access_or_leaves_the_window(visit: Open, width: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python checks access"
    ).Axe()
    page = visit("", width=width, color_scheme=scheme, may_fail=True).page

    def check() -> None:
        found = axe.run(
            page, options={"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]}
        )
        grave = [
            f"{fault['id']}: {fault['help']}: {[node['html'][:200] for node in fault['nodes'][:3]]}"
            for fault in found.response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert grave == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    expect(page.get_by_role("list", name="Some pictures of the index")).to_be_visible()
    check()
    page.get_by_role("textbox", name="Search").fill("dog - 0.5*heart")
    page.keyboard.press("Enter")
    has_loaded(page, 0)
    tile(page, 0).hover()
    tile(page, 0).get_by_role("button", name="Select").click()
    page.get_by_role("region", name="Selection").get_by_role("button", name="Download").click()
    page.get_by_role("button", name="Condition").click()
    page.get_by_label("Condition over the columns").fill("widht > 3")
    check()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    check()
    page.get_by_role("button", name="Remove", exact=True).click()
    tile(page, 0).click()
    expect(
        page.get_by_role("region", name=re.compile("Picture")).get_by_role("button", name=re.compile("^Open "))
    ).to_have_count(18)
    check()
