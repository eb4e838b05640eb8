"""What people ask with: texts, pictures, hits, and sums of them; the address says all of it."""

from __future__ import annotations

import base64
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="the web page is tested through playwright")
from playwright.sync_api import Page, expect

OpenPage = Callable[..., Page]
Open = Callable[..., Any]  # to a Visit of conftest.py
DROP = """([type, bytes]) => {
    const data = new DataTransfer();
    const letters = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    data.items.add(new File([letters], "dropped.jpg", { type: "image/jpeg" }));
    const how = { bubbles: true, cancelable: true };
    const event = type === "paste" ? new ClipboardEvent("paste", { clipboardData: data, ...how })
                                   : new DragEvent(type, { dataTransfer: data, ...how });
    document.body.dispatchEvent(event);
}"""


def box(page: Page) -> Any:
    return page.get_by_role("search").get_by_role("textbox")


def tile(page: Page, place: int) -> Any:
    return page.locator(f"#hit-{place}")


def has_loaded(page: Page, place: int) -> None:
    """Wait until the picture of a hit is there, and not only its place."""
    expect(tile(page, place).locator("img")).to_have_class(re.compile("shown"))


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
