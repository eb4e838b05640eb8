"""The web page in a browser: queries, hits, controls, and errors.

A test that takes `open_page` runs as on a desktop and as on a phone, where fingers tap. One that calls `shows` looks at
a state at both widths in one visit. conftest.py lists features and tests.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
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
from tests.pages.conftest import OpenPage, grave_faults, is_phone, press

Open = Callable[..., Any]  # to a Visit of conftest.py
ROWS = 10_000  # of the index `many`
LEAST_TOUCH = 24  # pixels: WCAG 2.2, target size
KEY = "a-key-of-sixteen-characters"
FOCUSED = "(document.activeElement.id || document.activeElement.innerText || document.activeElement.ariaLabel).trim()"
SCROLL_DOWN = """() => {
    const down = () => { scrollTo(0, document.body.scrollHeight); window.down = setTimeout(down, 30); };
    down();
}"""
START_OF_PLAYING = """video => new Promise((done, fail) => {
    const look = () => video.played.length ? done(video.played.start(0)) : setTimeout(look, 20);
    setTimeout(() => fail(new Error("the video does not play")), 60000);
    look();
})"""
DROP = """([type, bytes]) => {
    const data = new DataTransfer();
    const letters = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    data.items.add(new File([letters], "dropped.jpg", { type: "image/jpeg" }));
    const how = { bubbles: true, cancelable: true };
    const event = type === "paste" ? new ClipboardEvent("paste", { clipboardData: data, ...how })
                                   : new DragEvent(type, { dataTransfer: data, ...how });
    document.body.dispatchEvent(event);
}"""


def tile(page: Page, place: int) -> Any:
    return page.locator(f"#hit-{place}")


def shows(visited: Any, *parts: Any) -> None:
    """Check that parts of the page are in sight at both widths."""
    for _ in visited.at_each_width():
        for part in parts:
            expect(part).to_be_in_viewport(ratio=1)


def panel_of(page: Page) -> Any:
    return page.get_by_role("region", name=re.compile(r"^Picture \d+$"))


def like(page: Page, place: int, how: str) -> None:
    """Add a hit to the search, subtract it, or search only with it: below the mouse; on a phone in its panel."""
    if is_phone(page):
        tile(page, place).tap()
        names = {"More": "More like this", "Less": "Subtract", "Add": "Add"}
        panel_of(page).get_by_role("button", name=names[how], exact=True).tap()
        expect(panel_of(page)).to_have_count(0)
    else:
        tile(page, place).hover()
        tile(page, place).get_by_role("button", name=re.compile(rf"^{how} ")).click()


def pick(page: Page, place: int) -> None:
    if not is_phone(page):
        tile(page, place).hover()
    press(tile(page, place).get_by_role("button", name="Select"))


def has_loaded(page: Page, place: int) -> None:
    expect(tile(page, place).locator("img")).to_have_class(re.compile("shown"))


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, headers=headers, json={"message": message})


def box(page: Page) -> Any:
    return page.get_by_role("search").get_by_role("textbox")


def picture_of(servers: Any, row: int) -> bytes:
    with urllib.request.urlopen(f"{servers.url}/v1/pictures/gallery/{row}?original=1", timeout=60) as answer:
        return bytes(answer.read())


def row_of(page: Page, place: int) -> int:
    found = re.search(r"/(\d+)\?", tile(page, place).locator("img").get_attribute("src") or "")
    assert found is not None
    return int(found[1])


def test_a_text_finds_pictures_and_is_in_the_address(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.get_by_role("heading", name=re.compile(r"Search \d+ pictures"))).to_be_visible()
    box(page).fill("dog")
    box(page).press("Enter")
    expect(tile(page, 0)).to_have_accessible_name(re.compile(r"^dog.*, similarity 0\.\d+$"))
    has_loaded(page, 0)
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    expect(page).to_have_title("dog · clip-retrieval")
    expect(page.get_by_text(re.compile(r"^[\d,]+\+? hits$"))).to_be_visible()


def test_signs_add_and_take_away_and_chips_weigh_and_are_typed_anew(visit: Open) -> None:
    visited = visit("")
    page = visited.page
    box(page).fill("dog - 0.5*red heart")
    box(page).press("Enter")
    chips = page.get_by_role("list", name="Parts of the search").get_by_role("listitem")
    expect(chips).to_have_count(2)
    expect(chips.nth(1).locator(".weight")).to_have_text("−0.5×")
    shows(visited, chips.nth(0), chips.nth(1), tile(page, 0))
    for name in ("Less of red heart", "More of red heart", "Remove red heart"):
        size = page.get_by_role("button", name=name).bounding_box()
        assert size is not None
        assert size["width"] >= LEAST_TOUCH
    page.get_by_role("button", name="More of dog").click()
    expect(page).to_have_url(re.compile(r"q=1\.5\*dog&q=-0\.5\*red\+heart$"))
    page.get_by_role("button", name="Less of red heart").click()
    expect(chips.nth(1).locator(".weight")).to_have_text("−")
    page.get_by_role("button", name="red heart", exact=True).click()
    expect(box(page)).to_have_value("red heart")
    box(page).fill("cat")
    box(page).press("Enter")
    expect(page).to_have_url(re.compile(r"\?q=1\.5\*dog&q=cat$"))
    box(page).press("Backspace")
    expect(box(page)).to_have_value("cat")
    box(page).press("Enter")
    page.get_by_role("button", name="Remove cat").click()
    page.get_by_role("button", name="Less of dog").click()
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    expect(box(page)).to_have_value("dog")
    page.get_by_role("button", name="Clear the search").click()
    expect(page.get_by_role("list", name="Some pictures of the index")).to_be_visible()


def test_a_picture_is_dropped_pasted_or_chosen_and_its_address_works_for_others(
    open_page: OpenPage, servers: Any, tmp_path: Path
) -> None:
    page = open_page("?q=red+heart")
    expect(tile(page, 0)).to_be_visible()
    data = picture_of(servers, 7)
    page.evaluate(DROP, ["drop", base64.b64encode(data).decode()])
    expect(page).to_have_url(re.compile(r"\?q=red\+heart&q=vec%3A[\w-]+$"))
    press(page.get_by_role("button", name="Remove red heart"))
    expect(page).to_have_url(re.compile(r"\?q=vec%3A[\w-]+$"))
    expect(page.get_by_role("listitem").locator("img.thumb")).to_be_visible()
    has_loaded(page, 0)
    assert row_of(page, 0) == 7
    if not is_phone(page):
        other = open_page(page.url.removeprefix(f"{servers.url}/"))
        has_loaded(other, 0)
        assert row_of(other, 0) == 7
    page.evaluate(DROP, ["paste", base64.b64encode(data).decode()])
    expect(page).to_have_url(re.compile(r"\?q=vec%3A[\w-]+&q=vec%3A[\w-]+$"))
    press(page.get_by_role("button", name="Clear the search"))
    (tmp_path / "mine.jpg").write_bytes(data)
    with page.expect_file_chooser() as asked:
        press(page.get_by_role("button", name="Search with a picture"))
    asked.value.set_files(tmp_path / "mine.jpg")
    expect(page).to_have_url(re.compile(r"\?q=vec%3A[\w-]+$"))
    has_loaded(page, 0)
    assert row_of(page, 0) == 7


def test_more_and_less_like_a_hit(open_page: OpenPage) -> None:
    page = open_page("?q=dog")
    has_loaded(page, 1)
    first, second = row_of(page, 0), row_of(page, 1)
    like(page, 1, "More")
    expect(page).to_have_url(re.compile(rf"\?q=id%3A{second}&build=\w+$"))
    has_loaded(page, 0)
    assert second not in {row_of(page, place) for place in range(3)}
    page.go_back()
    if is_phone(page):
        press(panel_of(page).get_by_role("button", name="Close"))
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    like(page, 0, "Less")
    expect(page).to_have_url(re.compile(rf"\?q=dog&q=-1\*id%3A{first}&build=\w+$"))
    has_loaded(page, 1)
    added = row_of(page, 1)
    like(page, 1, "Add")
    expect(page).to_have_url(re.compile(rf"\?q=dog&q=-1\*id%3A{first}&q=id%3A{added}&build=\w+$"))


def test_a_condition_is_made_of_columns_and_its_fault_is_told(visit: Open) -> None:
    visited = visit("?q=dog", may_fail=True)
    page = visited.page
    expect(tile(page, 0)).to_be_visible()
    page.get_by_role("button", name="Condition").click()
    field = page.get_by_label("Condition over the columns")
    field.fill(field.get_attribute("placeholder") or "")
    with page.expect_response("**/v1/search") as answered:
        field.press("Enter")
    assert answered.value.status == 200
    expect(tile(page, 0)).to_be_visible()
    field.fill("")
    page.get_by_role("button", name="scale", exact=True).click()
    page.get_by_role("button", name="background", exact=True).click()
    expect(field).to_have_value(re.compile(r"^scale >= [\d.]+ and background = '\w+'$"))
    field.press("Enter")
    expect(page).to_have_url(re.compile(r"where=scale\+%3E%3D\+[\d.]+\+and\+background"))
    expect(tile(page, 0)).to_be_visible()
    field.fill("widht > 3")
    page.get_by_role("button", name="Apply").click()
    fault = page.get_by_role("alert")
    expect(fault).to_contain_text("there is no column widht. The columns are background, caption")
    shows(visited, field, fault, page.get_by_role("button", name="Apply"))
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(fault).to_have_count(0)
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    expect(tile(page, 0)).to_be_visible()


def test_toggles_captions_and_other_indices_are_in_sight_and_change_what_is_asked(visit: Open) -> None:
    visited = visit("?q=dog")
    page = visited.page
    expect(tile(page, 0)).to_be_visible()
    toggles = {"No near-duplicates": "deduplicate", "Varied": "diverse", "Surely there": "surprise"}
    names = (*toggles, "Captions", "Pictures", "Condition", "Download")
    shows(visited, page.get_by_label("Index"), *(page.get_by_role("button", name=name) for name in names))
    for count, name in enumerate(toggles, 1):
        toggle = page.get_by_role("button", name=name)
        with page.expect_request("**/v1/search") as asked:
            toggle.click()
        sent = asked.value.post_data_json
        assert [field for field in toggles.values() if sent[field] is not None] == [*toggles.values()][:count]
        expect(toggle).to_have_attribute("aria-pressed", "true")
        expect(tile(page, 0)).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?q=dog&unique&varied&sure$"))
    for name in toggles:
        page.get_by_role("button", name=name).click()
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    page.get_by_role("button", name="Captions").click()
    expect(page).to_have_url(re.compile(r"in=text$"))
    expect(tile(page, 0)).to_have_accessible_name(re.compile(r"similarity (1\.000|0\.[789])"))
    page.get_by_role("button", name="Pictures").click()
    page.get_by_label("Index").select_option("many")
    expect(page).to_have_url(re.compile(r"\?index=many&q=dog$"))
    expect(tile(page, 0)).to_have_accessible_name(re.compile("^row "))


def test_nothing_is_shown_where_no_row_meets_the_condition(visit: Open) -> None:
    visited = visit("?index=many&q=zebra&where=width+%3C+0")
    page = visited.page
    shows(visited, page.get_by_text("Nothing was found"), page.get_by_text("No row meets the condition."))


def test_a_link_says_the_whole_state(visit: Open) -> None:
    visited = visit("?index=gallery&q=dog&q=-0.5*heart&in=text&where=scale+%3E+0&unique&varied&sure&open=3")
    page = visited.page
    panel = page.get_by_role("region", name="Picture 3")
    shows(visited, panel.get_by_role("button", name="Close"))
    panel.get_by_role("button", name="Close").click()
    names = ("Captions", "No near-duplicates", "Varied", "Surely there", "Condition")
    pressed = [page.get_by_role("button", name=name) for name in names]
    shows(visited, page.get_by_label("Index"), *pressed)
    expect(page.get_by_label("Index")).to_have_value("gallery")
    for button in pressed:
        expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Condition over the columns")).to_have_value("scale > 0")
    expect(page.get_by_role("list", name="Parts of the search").get_by_role("listitem")).to_have_count(2)


def test_the_back_button_finds_a_search_where_it_was_left(open_page: OpenPage) -> None:
    page = open_page("?index=many&q=row+1")
    expect(tile(page, 0)).to_be_visible()
    columns = int(page.get_by_role("grid").get_attribute("aria-colcount") or 0)
    tops = [tile(page, place).evaluate("tile => tile.getBoundingClientRect().top") for place in (0, columns)]
    page.evaluate("y => scrollTo(0, y)", 8 * (tops[1] - tops[0]))
    expect(tile(page, 9 * columns)).to_be_in_viewport()
    box(page).fill("row 2")
    box(page).press("Enter")
    expect(page).to_have_url(re.compile(r"q=row\+2$"))
    expect(tile(page, 0)).to_be_in_viewport()
    page.go_back()
    expect(box(page)).to_have_value("row 1")
    expect(tile(page, 9 * columns)).to_be_in_viewport()
    page.go_forward()
    expect(box(page)).to_have_value("row 2")


def test_the_panel_shows_a_hit_and_leads_on(open_page: OpenPage) -> None:
    page = open_page("?q=dog")
    has_loaded(page, 1)
    press(tile(page, 1))
    panel = panel_of(page)
    expect(panel).to_be_focused()
    expect(panel.get_by_role("heading", level=2)).to_contain_text("dog")
    expect(panel.locator(".large img")).to_have_class(re.compile("shown"))
    for name in ("similarity", "image_path", "emoji", "rotation_degrees"):
        expect(panel.get_by_role("term").filter(has_text=re.compile(f"^{name}$"))).to_be_visible()
    neighbors = panel.get_by_role("button", name=re.compile("^Open "))
    expect(neighbors).to_have_count(18)
    first = page.url
    steps = (("Next", "ArrowRight"), ("Previous", "ArrowLeft"))
    for (name, key), is_first in zip(steps, (False, True), strict=True):
        press(panel.get_by_role("button", name=name)) if is_phone(page) else page.keyboard.press(key)
        expect(page).to_have_url(first) if is_first else expect(page).not_to_have_url(first)
    press(neighbors.first)
    expect(page).not_to_have_url(first)
    press(panel.get_by_role("button", name="Close")) if is_phone(page) else page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(tile(page, 1)).to_be_focused()


def test_a_video_plays_from_the_moment_of_the_hit(open_page: OpenPage) -> None:
    pytest.importorskip("av", reason="videos are read by PyAV: pip install av")
    page = open_page("?index=films&open=0")
    panel = panel_of(page)
    press(panel.get_by_role("button", name="Play at 0:02.2"))
    video = panel.locator("video")
    assert video.evaluate(START_OF_PLAYING) == 2.2
    assert video.evaluate("video => video.videoWidth") == 64
    expect(video).to_be_focused()
    expect(panel.get_by_role("link", name="Video")).to_have_attribute(
        "href", re.compile(r"/v1/files/films/0\?generation=\w+#t=2\.2$")
    )
    press(panel.get_by_role("button", name="Close"))
    expect(video).to_have_count(0)


def test_a_video_that_no_browser_plays_is_told_of_and_can_be_saved(visit: Open) -> None:
    pytest.importorskip("av", reason="videos are read by PyAV: pip install av")
    visited = visit("?index=films&open=2")
    panel = panel_of(visited.page)
    press(panel.get_by_role("button", name="Play at 0:00"))
    shows(visited, panel.get_by_role("status").filter(has_text="This browser cannot play the video"))
    expect(panel.locator(".large img")).to_have_class(re.compile("shown"))
    expect(panel.get_by_role("link", name="Video")).to_be_visible()


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


def test_ten_thousand_hits_scroll_and_few_are_there_at_once(open_page: OpenPage) -> None:
    page = open_page("?index=many&q=dog")
    expect(tile(page, 0)).to_be_visible()
    page.evaluate(SCROLL_DOWN)
    expect(page.get_by_text(f"{ROWS:,} hits")).to_have_count(1)
    page.evaluate("() => { clearTimeout(window.down); scrollTo(0, document.body.scrollHeight); }")
    expect(tile(page, ROWS - 1)).to_be_visible()
    expect(box(page)).to_be_in_viewport(ratio=1)
    filters = page.get_by_role("button", name="Surely there")
    expect(filters).not_to_be_in_viewport() if is_phone(page) else expect(filters).to_be_in_viewport()
    assert page.get_by_role("gridcell").count() < 150
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    expect(tile(page, ROWS - 1)).to_have_count(0)
    expect(page.get_by_role("grid")).to_have_attribute("aria-rowcount", re.compile(r"^[1-9]\d+$"))


def test_pictures_come_after_a_scroll_that_was_too_fast_for_them(visit: Open) -> None:
    page = visit("?q=dog").page
    has_loaded(page, 0)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    has_loaded(page, 59)


def test_selected_hits_are_downloaded(open_page: OpenPage) -> None:
    page = open_page("?q=dog")
    has_loaded(page, 0)
    for place in (0, 2):
        pick(page, place)
    bar = page.get_by_role("region", name="Selection")
    expect(bar).to_be_in_viewport(ratio=1)
    for name in ("Range", "Clear the selection"):
        expect(bar.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)

    def save(name: str) -> bytes:
        press(bar.get_by_role("button", name="Download"))
        with page.expect_download() as saved:
            press(bar.get_by_role("button", name=name))
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
    press(bar.get_by_role("button", name="Range"))
    press(tile(page, 5))
    expect(bar).to_contain_text("5 selected")
    press(bar.get_by_role("button", name="Clear the selection"))
    expect(bar).to_have_count(0)
    press(page.get_by_role("button", name="Download"))
    expect(page.get_by_role("group", name="Download 60 hits")).to_be_in_viewport(ratio=1)


def test_a_broken_picture_is_a_tile_with_its_caption_and_markup_is_only_text(open_page: OpenPage) -> None:
    page = open_page("?index=odd&q=%3Cimg+src%3Dx+onerror%3Dwindow.hurt%3D1%3E", may_fail=True)
    expect(page.get_by_role("gridcell")).to_have_count(6)
    broken = page.locator(".tile").filter(has=page.locator(".caption", has_text=re.compile("^<img")))
    expect(broken.locator(".missing")).to_have_text('<img src=x onerror="window.hurt = 1">')
    boxes = [place.bounding_box() for place in page.locator(".tile").all()]
    assert len({round(box["height"]) for box in boxes if box}) == 1
    press(broken)
    panel = panel_of(page)
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
    """Reserve a port for servers that come and go."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def started(index: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """Serve by a separate process, which answers when the block begins and is dead after it."""
    command = [sys.executable, "-m", "clip_retrieval", "back", str(index), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = [process.stderr.readline()]
            while " answers" not in lines[-1]:
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            yield process
        finally:
            process.kill()


def test_a_server_that_is_killed_while_it_is_asked_and_comes_back(visit: Open, odd: Path) -> None:
    with held_port() as port, ExitStack() as later:
        with started(odd, port) as process:
            visited = visit("?q=dog", at=f"http://127.0.0.1:{port}", may_fail=True)
            page = visited.page
            expect(page.get_by_role("gridcell")).to_have_count(6)
            process.send_signal(signal.SIGSTOP)  # the request is under way when the server dies
            page.get_by_role("textbox", name="Search").fill("cat")
            page.keyboard.press("Enter")
            expect(page.get_by_text("Searching…")).to_be_visible()
        shows(visited, page.get_by_text("The server does not answer."))
        expect(page.get_by_text(f"Nothing answers at http://127.0.0.1:{port}.")).to_be_visible()
        expect(page.get_by_text(re.compile(r"Trying again in \d+ s\."))).to_be_visible()
        later.enter_context(started(odd, port))
        expect(page.get_by_text("The server does not answer.")).to_have_count(0)
        expect(page.get_by_role("gridcell")).to_have_count(6)
        expect(page).to_have_title("cat · clip-retrieval")


def test_a_server_that_is_full_not_ready_slow_or_broken_is_told_and_asked_again(visit: Open) -> None:
    visited = visit("", may_fail=True)
    page = visited.page
    expect(page.get_by_role("button", name="Pictures")).to_be_visible()
    again = page.get_by_role("button", name=re.compile("^Try "))
    message, headers = "too many requests are waiting", {"retry-after": "60"}
    page.route("**/v1/search", refuse(429, message, headers), times=1)
    box(page).fill("dog")
    box(page).press("Enter")
    shows(visited, page.get_by_text("The server is busy. Too many requests are waiting."), again)
    expect(page.get_by_text(re.compile(r"Trying again in \d\d s\."))).to_be_visible()
    page.route("**/v1/search", refuse(503, "the model is being opened", headers), times=1)
    again.click()
    shows(visited, page.get_by_text("The server is not ready yet. The model is being opened."), again)
    again.click()
    expect(tile(page, 0)).to_be_visible()
    held: list[Route] = []
    page.route("**/v1/search", lambda route: held.append(route), times=1)
    box(page).fill("cat")
    box(page).press("Enter")
    expect(page.get_by_text("Searching…")).to_be_visible()
    shows(visited, page.get_by_text("Still searching: the server is slow."))
    held[0].fulfill(status=500, json={"message": "Internal Server Error"})
    shows(visited, page.get_by_text("Something broke. Internal Server Error."), again)
    again.click()
    expect(tile(page, 0)).to_be_visible()
    expect(again).to_have_count(0)


def test_what_the_server_refuses_is_said_in_its_words(visit: Open, servers: Any) -> None:
    visited = visit("?q=qwertyzxcv", may_fail=True)
    page = visited.page
    shows(visited, page.get_by_text(re.compile("That cannot be answered. The model demo knows no word")))
    box(page).fill(f"{servers.url}/v1/pictures/gallery/7")
    box(page).press("Enter")
    expect(page).to_have_url(re.compile(r"\?q=url%3Ahttp%3A%2F%2F.*%2Fgallery%2F7$"))
    expect(page.get_by_text("image_url")).to_be_visible()


def test_a_key_is_asked_for_and_opens_pictures_too(visit: Open, odd: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    options = {"port": 0, "reload_seconds": 0, "api_key_file": str(tmp_path / "keys")}
    with listening(build_config(BackConfig, options, [str(odd)])) as server:
        visited = visit("?q=javascript%3Awindow.hurt%3D1", at=server.url, may_fail=True)
        page = visited.page
        dialog = page.get_by_role("dialog", name="This server requires a key")
        dialog.get_by_label("Key").fill("a wrong key of some length")
        page.keyboard.press("Enter")
        shows(visited, dialog.get_by_text("The key was not accepted."), dialog.get_by_role("button"))
        dialog.get_by_label("Key").fill(KEY)
        dialog.get_by_role("button").click()
        expect(dialog).to_have_count(0)
        expect(tile(page, 0).locator("img")).to_have_attribute("src", re.compile("^blob:"))
        has_loaded(page, 0)
        assert KEY not in page.url
        page.reload()
        has_loaded(page, 0)


def test_a_video_plays_by_a_signed_link_where_a_key_is_wanted(visit: Open, films: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos are read by PyAV: pip install av")
    (tmp_path / "keys").write_text(f"{KEY}\n")
    options = {"port": 0, "reload_seconds": 0, "api_key_file": str(tmp_path / "keys")}
    with listening(build_config(BackConfig, options, [str(films)])) as server:
        page = visit("?open=0", at=server.url, may_fail=True).page
        dialog = page.get_by_role("dialog", name="This server requires a key")
        dialog.get_by_label("Key").fill(KEY)
        dialog.get_by_role("button").click()
        panel = panel_of(page)
        press(panel.get_by_role("button", name="Play at 0:02.2"))
        video = panel.locator("video")
        assert video.evaluate(START_OF_PLAYING) == 2.2
        assert video.evaluate("video => video.videoWidth") == 64
        address = panel.get_by_role("link", name="Video").get_attribute("href") or ""
        assert re.search(r"&expires=\d+&signature=[0-9a-f]{64}#t=2\.2$", address)
        assert KEY not in address


def test_a_server_without_v1_and_links_of_clip_retrieval_2_work(visit: Open) -> None:
    old, routes = "?back=&index=gallery&useMclip=false&query=dog", {"**/v1/**": refuse(404, "nothing")}
    visited = visit(old, may_fail=True, routes=routes)
    page = visited.page
    has_loaded(page, 0)
    shows(visited, tile(page, 0), page.get_by_role("button", name="No near-duplicates"))
    expect(box(page)).to_have_value("dog")
    for name in ("Varied", "Surely there", "Condition"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_text(re.compile(r"^(1[2-9]\d|[2-9]\d\d)\+? hits$"))).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    tile(page, 1).click()
    panel = panel_of(page)
    expect(panel.get_by_role("button", name=re.compile("^Open ")).first).to_be_visible()
    panel.get_by_role("button", name="More like this").click()
    expect(page).to_have_url(re.compile(r"q=pic%3A\w+$"))
    has_loaded(page, 0)


def test_the_page_alone_asks_the_server_elsewhere(visit: Open, servers: Any) -> None:
    visited = visit("?q=dog", at=servers.front, also=(servers.url,), may_fail=True)
    page = visited.page
    has_loaded(page, 0)
    page.goto(f"{servers.front}/?q=dog&back=http://127.0.0.1:9")
    shows(visited, page.get_by_text("The server does not answer."))
    visited.faults[:] = [
        fault for fault in visited.faults if "Content Security Policy" not in fault and ":9/" not in fault
    ]


def test_a_link_to_pictures_of_an_older_build_says_so(visit: Open) -> None:
    visited = visit("?q=id:3&build=0123456789abcdef")
    page = visited.page
    again = page.get_by_role("button", name="Search anyway")
    shows(visited, page.get_by_text("The index was rebuilt"), again)
    again.click()
    has_loaded(page, 0)


def test_a_row_of_an_older_build_is_shown_only_when_asked_for(visit: Open) -> None:
    page = visit("?q=dog&open=3&build=0123456789abcdef").page
    expect(page.get_by_text("The index was rebuilt")).to_be_visible()
    has_loaded(page, 0)
    panel = page.get_by_role("region", name="Picture 3")
    expect(panel).to_have_count(0)
    page.get_by_role("button", name="Show anyway").click()
    expect(panel).to_be_visible()
    expect(page.get_by_text("The index was rebuilt")).to_have_count(0)


def test_the_panel_has_all_columns_of_a_row_that_was_not_found(visit: Open) -> None:
    visited = visit("?index=many&open=5000")
    panel = visited.page.get_by_role("region", name="Picture 5000")
    width = panel.get_by_role("term").filter(has_text=re.compile("^width$"))
    shows(visited, panel.get_by_role("heading", name="row 5000"))
    expect(width).to_be_visible()


def test_an_index_that_is_not_there_is_told_with_those_that_are(visit: Open) -> None:
    visited = visit("?index=nosuch&q=dog")
    page = visited.page
    there = page.get_by_role("button", name="gallery")
    shows(visited, page.get_by_text("There is no index “nosuch”"), there)
    expect(page.get_by_role("gridcell")).to_have_count(0)
    there.click()
    expect(page).to_have_url(re.compile(r"\?index=gallery&q=dog$"))
    expect(tile(page, 0)).to_be_visible()


def test_a_server_that_comes_back_with_another_index_is_searched(visit: Open, odd: Path, tmp_path: Path) -> None:
    with held_port() as port, ExitStack() as later:
        configs = []
        for name in ("before", "after"):
            (tmp_path / f"{name}.json").write_text(json.dumps({name: str(odd)}))
            options = {"port": port, "reload_seconds": 0}
            configs.append(build_config(BackConfig, options, [str(tmp_path / f"{name}.json")]))
        with listening(configs[0]) as server:
            page = visit("?q=dog", at=server.url, may_fail=True).page
            expect(page.get_by_role("gridcell")).to_have_count(6)
        later.enter_context(listening(configs[1]))
        box(page).fill("cat")
        box(page).press("Enter")
        expect(page).to_have_title("cat · clip-retrieval")
        expect(page.get_by_role("gridcell")).to_have_count(6)
        page.goto(f"{server.url}/?q=dog&index=before")
        page.get_by_role("button", name="after").click()
        expect(page.get_by_role("gridcell")).to_have_count(6)


def test_colors_go_by_the_system_and_by_choice(visit: Open) -> None:
    def is_dark() -> bool:
        return bool(
            page.evaluate("parseInt(getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0]) < 80")
        )

    visited = visit(scheme="dark")
    page = visited.page
    colors = page.get_by_role("button", name="Colors")
    shows(visited, colors)
    assert is_dark()
    page.emulate_media(color_scheme="light")
    assert not is_dark()
    for name, dark in (("light", False), ("dark", True)):
        colors.click()
        expect(colors).to_have_accessible_name(f"Colors: {name}")
        assert is_dark() == dark
    page.reload()
    expect(colors).to_have_accessible_name("Colors: dark")
    assert is_dark()


@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_no_state_has_a_serious_fault_of_access_or_leaves_the_window(visit: Open, width: str, scheme: str) -> None:
    page = visit("", width=width, scheme=scheme, may_fail=True).page

    def check() -> None:
        assert grave_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    expect(page.get_by_role("list", name="Some pictures of the index")).to_be_visible()
    check()
    page.get_by_role("textbox", name="Search").fill("dog - 0.5*heart")
    page.keyboard.press("Enter")
    has_loaded(page, 0)
    pick(page, 0)
    press(page.get_by_role("region", name="Selection").get_by_role("button", name="Download"))
    press(page.get_by_role("button", name="Condition"))
    page.get_by_label("Condition over the columns").fill("widht > 3")
    check()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    check()
    press(page.get_by_role("button", name="Remove", exact=True))
    press(tile(page, 0))
    expect(panel_of(page).get_by_role("button", name=re.compile("^Open "))).to_have_count(18)
    check()
