"""The web page in a browser: what people ask with, what it shows, how it is worked with, and what goes wrong."""

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

OpenPage = Callable[..., Page]
Open = Callable[..., Any]  # to a Visit of conftest.py
ROWS = 10_000  # of the index `many`
KEY = "a-key-of-sixteen-characters"
FOCUSED = "(document.activeElement.id || document.activeElement.innerText || document.activeElement.ariaLabel).trim()"
SCROLL_DOWN = """() => {
    const down = () => { scrollTo(0, document.body.scrollHeight); window.down = setTimeout(down, 30); };
    down();
}"""
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


def test_signs_add_and_take_away_and_chips_weigh(open_page: OpenPage) -> None:
    page = open_page()
    box(page).fill("dog - 0.5*red heart")
    box(page).press("Enter")
    chips = page.get_by_role("list", name="Parts of the search").get_by_role("listitem")
    expect(chips).to_have_count(2)
    expect(chips.nth(1).locator(".weight")).to_have_text("−0.5×")
    expect(tile(page, 0)).to_be_visible()
    page.get_by_role("button", name="More of dog").click()
    expect(page).to_have_url(re.compile(r"q=1\.5\*dog&q=-0\.5\*red\+heart$"))
    page.get_by_role("button", name="Less of red heart").click()
    expect(chips.nth(1).locator(".weight")).to_have_text("−")
    page.get_by_role("button", name="Remove red heart").click()
    page.get_by_role("button", name="Less of dog").click()
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    expect(box(page)).to_have_value("dog")


def test_a_part_can_be_typed_anew(visit: Open) -> None:
    page = visit("?q=dog&q=cat").page
    page.get_by_role("button", name="cat", exact=True).click()
    expect(box(page)).to_have_value("cat")
    box(page).fill("heart")
    box(page).press("Enter")
    expect(page).to_have_url(re.compile(r"\?q=dog&q=heart$"))
    box(page).press("Backspace")
    expect(box(page)).to_have_value("heart")


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_finds_itself_and_its_address_works_for_others(
    visit: Open, servers: Any, tmp_path: Path, way: str
) -> None:
    page = visit(width="phone" if way == "choose" else "desktop").page
    expect(page.get_by_role("button", name="Pictures")).to_be_visible()
    data = picture_of(servers, 7)
    if way == "choose":
        (tmp_path / "mine.jpg").write_bytes(data)
        page.locator("input[type=file]").set_input_files(tmp_path / "mine.jpg")
    else:
        page.evaluate(DROP, [way, base64.b64encode(data).decode()])
    expect(page).to_have_url(re.compile(r"q=vec%3A[\w-]+$"))
    expect(page.get_by_role("listitem").locator("img.thumb")).to_be_visible()
    has_loaded(page, 0)
    assert row_of(page, 0) == 7
    if way == "paste":
        return
    other = visit(page.url.removeprefix(f"{servers.url}/")).page
    has_loaded(other, 0)
    assert row_of(other, 0) == 7


def test_a_picture_is_added_to_a_text(visit: Open, servers: Any) -> None:
    page = visit("?q=red+heart").page
    expect(tile(page, 0)).to_be_visible()
    page.evaluate(DROP, ["drop", base64.b64encode(picture_of(servers, 7)).decode()])
    expect(page).to_have_url(re.compile(r"\?q=red\+heart&q=vec%3A[\w-]+$"))


def test_more_and_less_like_a_hit(visit: Open) -> None:
    page = visit("?q=dog").page
    has_loaded(page, 1)
    first, second = row_of(page, 0), row_of(page, 1)
    tile(page, 1).hover()
    tile(page, 1).get_by_role("button", name="More like").click()
    expect(page).to_have_url(re.compile(rf"\?q=id%3A{second}&build=\w+$"))
    has_loaded(page, 0)
    assert second not in {row_of(page, place) for place in range(3)}
    page.go_back()
    expect(page).to_have_url(re.compile(r"\?q=dog$"))
    tile(page, 0).hover()
    tile(page, 0).get_by_role("button", name="Less like").click()
    expect(page).to_have_url(re.compile(rf"\?q=dog&q=-1\*id%3A{first}&build=\w+$"))


def test_captions_are_searched_too(visit: Open) -> None:
    page = visit("?q=dog").page
    expect(tile(page, 0)).to_be_visible()
    page.get_by_role("button", name="Captions").click()
    expect(page).to_have_url(re.compile(r"in=text$"))
    expect(tile(page, 0)).to_have_accessible_name(re.compile(r"similarity (1\.000|0\.[789])"))


def test_another_index_answers_too(visit: Open) -> None:
    page = visit("?q=dog").page
    expect(tile(page, 0)).to_be_visible()
    page.get_by_label("Index").select_option("many")
    expect(page).to_have_url(re.compile(r"\?index=many&q=dog$"))
    expect(tile(page, 0)).to_have_accessible_name(re.compile("^row "))


def test_a_condition_is_made_of_columns_and_its_fault_is_told(open_page: OpenPage) -> None:
    page = open_page("?q=dog", may_fail=True)
    expect(tile(page, 0)).to_be_visible()
    page.get_by_role("button", name="Condition").click()
    field = page.get_by_label("Condition over the columns")
    field.fill("widht > 3")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("there is no column widht. The columns are background, caption")
    page.get_by_role("button", name="background", exact=True).click()
    field.fill("background = 'plain'")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page).to_have_url(re.compile(r"where=background\+%3D\+%27plain%27$"))
    expect(tile(page, 0)).to_be_visible()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page).to_have_url(re.compile(r"\?q=dog$"))


def test_a_column_goes_into_the_condition_as_its_values_want_it(visit: Open) -> None:
    page = visit("?q=dog").page
    expect(tile(page, 0)).to_be_visible()
    page.get_by_role("button", name="Condition").click()
    page.get_by_role("button", name="scale", exact=True).click()
    page.get_by_role("button", name="background", exact=True).click()
    field = page.get_by_label("Condition over the columns")
    expect(field).to_have_value(re.compile(r"^scale >= [\d.]+ and background = '\w+'$"))
    field.press("Enter")
    expect(tile(page, 0)).to_be_visible()


def test_toggles_change_what_is_asked(visit: Open) -> None:
    page = visit("?q=dog").page
    for name, field in (("No near-duplicates", "deduplicate"), ("Varied", "diverse"), ("Surely there", "surprise")):
        expect(tile(page, 0)).to_be_visible()
        toggle = page.get_by_role("button", name=name)
        with page.expect_request("**/v1/search") as asked:
            toggle.click()
        sent = asked.value.post_data_json
        assert [key for key in ("deduplicate", "diverse", "surprise") if sent[key] is not None] == [field]
        expect(toggle).to_have_attribute("aria-pressed", "true")
        expect(tile(page, 0)).to_be_visible()
        toggle.click()
    expect(page).to_have_url(re.compile(r"\?q=dog$"))


def test_nothing_is_shown_where_nothing_stands_out(visit: Open) -> None:
    page = visit("?index=many&q=zebra&where=width+%3C+0").page
    expect(page.get_by_text("Nothing was found")).to_be_visible()
    expect(page.get_by_text("No row meets the condition.")).to_be_visible()


def test_a_link_says_the_whole_state(visit: Open) -> None:
    page = visit("?index=gallery&q=dog&q=-0.5*heart&in=text&where=scale+%3E+0&unique&varied&sure&open=3").page
    expect(page.get_by_label("Index")).to_have_value("gallery")
    for name in ("Captions", "No near-duplicates", "Varied", "Surely there", "Condition"):
        expect(page.get_by_role("button", name=name, include_hidden=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Condition over the columns")).to_have_value("scale > 0")
    expect(page.get_by_role("region", name="Picture 3")).to_be_visible()


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


def test_clip_retrieval_2s_links_work(visit: Open) -> None:
    page = visit("?back=&index=gallery&useMclip=false&query=dog").page
    expect(tile(page, 0)).to_have_accessible_name(re.compile("^dog"))
    expect(box(page)).to_have_value("dog")


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


def test_pictures_come_after_a_scroll_that_was_too_fast_for_them(visit: Open) -> None:
    page = visit("?q=dog").page
    has_loaded(page, 0)
    page.evaluate(SCROLL_DOWN)
    expect(page.get_by_text(re.compile(r"^\d+ hits$"))).to_be_attached()
    page.evaluate("() => { clearTimeout(window.down); scrollTo(0, document.body.scrollHeight); }")
    has_loaded(page, int(page.get_by_text(re.compile(r"^\d+ hits$")).inner_text().split()[0]) - 1)


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


@contextmanager
def started(index: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """Serve by a process of its own, which answers when the block begins and is dead after it."""
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
            page = visit("?q=dog", at=f"http://127.0.0.1:{port}", may_fail=True).page
            expect(page.get_by_role("gridcell")).to_have_count(6)
            process.send_signal(signal.SIGSTOP)  # the request is under way when the server dies
            page.get_by_role("textbox", name="Search").fill("cat")
            page.keyboard.press("Enter")
            expect(page.get_by_text("Searching…")).to_be_visible()
        expect(page.get_by_text("The server is away.")).to_be_visible()
        expect(page.get_by_text(f"Nothing answers at http://127.0.0.1:{port}.")).to_be_visible()
        expect(page.get_by_text(re.compile(r"Trying again in \d+ s\."))).to_be_visible()
        later.enter_context(started(odd, port))
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


def test_a_row_of_an_older_build_is_shown_only_when_asked_for(visit: Open) -> None:
    page = visit("?q=dog&open=3&build=0123456789abcdef").page
    expect(page.get_by_text("The index was built anew")).to_be_visible()
    has_loaded(page, 0)
    panel = page.get_by_role("region", name="Picture 3")
    expect(panel).to_have_count(0)
    page.get_by_role("button", name="Show anyway").click()
    expect(panel).to_be_visible()
    expect(page.get_by_text("The index was built anew")).to_have_count(0)


def test_the_panel_has_all_columns_of_a_row_that_was_not_found(visit: Open) -> None:
    page = visit("?index=many&open=5000").page
    panel = page.get_by_role("region", name="Picture 5000")
    expect(panel.get_by_role("heading", name="row 5000")).to_be_visible()
    expect(panel.get_by_role("term").filter(has_text=re.compile("^width$"))).to_be_visible()


def test_an_index_that_is_not_there_is_told_with_those_that_are(open_page: OpenPage) -> None:
    page = open_page("?index=nosuch&q=dog")
    expect(page.get_by_text("There is no index “nosuch”")).to_be_visible()
    expect(page.get_by_role("gridcell")).to_have_count(0)
    page.get_by_role("button", name="gallery").click()
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


def test_every_filter_is_in_sight_and_the_example_of_a_condition_is_one(open_page: OpenPage) -> None:
    page = open_page("?q=dog")
    has_loaded(page, 0)
    for name in ("No near-duplicates", "Varied", "Surely there", "Condition", "Download"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Condition").click()
    field = page.get_by_label("Condition over the columns")
    field.fill(field.get_attribute("placeholder") or "")
    with page.expect_response("**/v1/search") as answered:
        field.press("Enter")
    assert answered.value.status == 200
    expect(tile(page, 0)).to_be_visible()


def test_a_finger_can_do_on_a_phone_what_mouse_and_keys_can(visit: Open) -> None:
    page = visit("?q=dog", width="phone", viewport={"width": 390, "height": 844}, may_fail=True).page
    has_loaded(page, 1)
    tile(page, 0).get_by_role("button", name="Select").tap()
    chosen = page.get_by_role("region", name="Selection")
    for name in ("Range", "Download", "Clear the selection"):
        expect(chosen.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    chosen.get_by_role("button", name="Range").tap()
    tile(page, 3).tap()
    expect(chosen).to_contain_text("4 selected")
    chosen.get_by_role("button", name="Clear").tap()
    panel = page.get_by_role("region", name=re.compile("Picture"))
    for name, asked in (
        ("More like this", r"\?q=id%3A"),
        ("Add", r"q=dog&q=id%3A"),
        ("Subtract", r"q=dog&q=-1\*id%3A"),
    ):
        tile(page, 1).tap()
        panel.get_by_role("button", name="Next").tap()
        panel.get_by_role("button", name="Previous").tap()
        panel.get_by_role("button", name="Select").tap()
        panel.get_by_role("button", name=name, exact=True).tap()
        expect(panel).to_have_count(0)
        expect(page).to_have_url(re.compile(asked))
        page.go_back()
        panel.get_by_role("button", name="Close").tap()
    page.get_by_role("button", name="Clear the search").tap()
    expect(page.get_by_role("list", name="Some pictures of the index")).to_be_visible()


def test_the_address_of_a_picture_can_be_typed(visit: Open, servers: Any) -> None:
    page = visit("?q=dog", may_fail=True).page
    box(page).fill(f"{servers.url}/v1/pictures/gallery/7")
    box(page).press("Enter")
    expect(page).to_have_url(re.compile(r"\?q=url%3Ahttp%3A%2F%2F.*%2Fgallery%2F7$"))
    expect(page.get_by_text("image_url")).to_be_visible()


def test_only_the_search_box_stays_on_a_scrolled_phone(visit: Open) -> None:
    page = visit("?index=many&q=row+1", width="phone").page
    expect(tile(page, 0)).to_be_visible()
    page.evaluate("scrollTo(0, 3000)")
    expect(box(page)).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Surely there")).not_to_be_in_viewport()


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
