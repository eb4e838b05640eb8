from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "demo"


@pytest.fixture
def glyphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    glyphs = importlib.import_module("glyphs")
    if not glyphs.FONT_PATH.exists():
        pytest.skip("Debian's fonts-noto-color-emoji is not installed")
    yield glyphs
    sys.modules.pop("glyphs", None)


def test_every_glyph_has_a_name_of_its_own_and_a_picture(glyphs: ModuleType) -> None:
    found = glyphs.load_glyphs()
    assert len(found) >= 1300
    assert len({glyph.name for glyph in found}) == len(found)
    assert all(glyph.bitmap.size == (glyphs.GLYPH_SIDE, glyphs.GLYPH_SIDE) for glyph in found)


@pytest.mark.parametrize(
    ("code_point", "name"), [(0x2764, "red heart"), (0x1F355, "slice of pizza"), (0x1F535, "blue circle")]
)
def test_names_say_what_the_picture_shows(glyphs: ModuleType, code_point: int, name: str) -> None:
    assert glyphs.glyph_name(code_point) == name


def test_parts_of_a_name_fit_every_glyph_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    captions = importlib.import_module("captions")
    maker = captions.CaptionMaker(["dog", "dog face", "cat face"], seed=0)
    face = captions.Caption("face", tuple(maker.word_ids(["face"])), 1, is_whole=False)
    dog = captions.Caption("dog", tuple(maker.word_ids(["dog"])), 0, is_whole=False)
    assert maker.targets([face])[0].tolist() == [0, 0.5, 0.5]
    assert maker.targets([dog])[0].tolist() == [0.75, 0.25, 0]
