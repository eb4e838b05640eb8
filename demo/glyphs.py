"""Which glyphs the demo knows, what each is called, and its bitmap cut out of the color emoji font."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian: fonts-noto-color-emoji
STRIKE_SIZE = 109  # the only bitmap strike in the font
GLYPH_SIDE = 136  # every bitmap of the strike fits a square of this side

CODE_POINTS = (range(0x00A9, 0x3400), range(0x1F000, 0x1FB00))

# Parts of other emoji rather than pictures: regional indicators, skin tones, hair, the keycap.
PARTS = {0x20E3, *range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4)}

LEADING_WORDS = re.compile(r"^(?:heavy|large|playing card|mahjong tile|combining enclosing) ")
SPARE_WORDS = {"symbol", "sign", "ornament", "emblem"}

# Where the Unicode name misleads about the picture, or two names would be one.
NAMES = {
    0x00A9: "copyright",
    0x00AE: "registered trademark",
    0x203C: "double exclamation mark",
    0x2049: "exclamation question mark",
    0x2122: "trade mark",
    0x2139: "information",
    0x2194: "left right arrow",
    0x2195: "up down arrow",
    0x2196: "up left arrow",
    0x2197: "up right arrow",
    0x2198: "down right arrow",
    0x2199: "down left arrow",
    0x21A9: "right arrow curving left",
    0x21AA: "left arrow curving right",
    0x2328: "keyboard",
    0x23CF: "eject button",
    0x23E9: "fast forward button",
    0x23EA: "fast reverse button",
    0x23EB: "fast up button",
    0x23EC: "fast down button",
    0x23ED: "next track button",
    0x23EE: "last track button",
    0x23EF: "play or pause button",
    0x23F1: "stopwatch",
    0x23F2: "timer clock",
    0x23F8: "pause button",
    0x23F9: "stop button",
    0x23FA: "record button",
    0x24C2: "circled letter m",
    0x25AA: "tiny black square",
    0x25AB: "tiny white square",
    0x25B6: "play button",
    0x25C0: "reverse button",
    0x25FB: "medium white square",
    0x25FC: "medium black square",
    0x25FD: "small white square",
    0x25FE: "small black square",
    0x2600: "sun",
    0x2603: "snowman with snow",
    0x2604: "comet",
    0x260E: "telephone",
    0x2611: "check box",
    0x2620: "skull and crossbones",
    0x2622: "radioactive",
    0x2623: "biohazard",
    0x2638: "wheel of dharma",
    0x2639: "frowning face",
    0x263A: "smiling face",
    0x2640: "female",
    0x2642: "male",
    0x265F: "chess pawn",
    0x2660: "spade suit",
    0x2663: "club suit",
    0x2665: "heart suit",
    0x2666: "diamond suit",
    0x267B: "recycling",
    0x267E: "infinity",
    0x267F: "wheelchair",
    0x2692: "hammer and pick",
    0x2697: "alembic",
    0x269B: "atom",
    0x269C: "fleur de lis",
    0x26A0: "warning",
    0x26A1: "lightning",
    0x26A7: "transgender",
    0x26AA: "white circle",
    0x26AB: "black circle",
    0x26B0: "coffin",
    0x26BD: "soccer ball",
    0x26C4: "snowman",
    0x26C8: "thunder cloud and rain",
    0x26CE: "ophiuchus",
    0x26CF: "pick",
    0x26D1: "helmet with white cross",
    0x26D3: "chains",
    0x26D4: "no entry road",
    0x26E9: "shinto shrine",
    0x26EA: "church",
    0x26F0: "mountain",
    0x26F1: "umbrella on ground",
    0x26F3: "golf flag in hole",
    0x26F4: "ferry",
    0x26F7: "skier",
    0x26F8: "ice skate",
    0x26F9: "person with ball",
    0x26FA: "tent",
    0x26FD: "fuel pump",
    0x2702: "scissors",
    0x2705: "green check mark",
    0x2708: "airplane",
    0x2709: "envelope",
    0x270C: "victory hand",
    0x270D: "writing hand",
    0x270F: "pencil",
    0x2712: "black nib",
    0x2714: "check mark",
    0x2716: "multiplication",
    0x271D: "latin cross",
    0x2721: "star of david",
    0x2733: "eight spoked asterisk",
    0x2734: "eight pointed star",
    0x2744: "snowflake",
    0x274C: "cross mark",
    0x274E: "green cross mark button",
    0x2753: "red question mark",
    0x2754: "white question mark",
    0x2755: "white exclamation mark",
    0x2757: "red exclamation mark",
    0x2763: "heart exclamation",
    0x2764: "red heart",
    0x2795: "plus",
    0x2796: "minus",
    0x2797: "division",
    0x27A1: "right arrow",
    0x2934: "right arrow curving up",
    0x2935: "right arrow curving down",
    0x2B05: "left arrow",
    0x2B06: "up arrow",
    0x2B07: "down arrow",
    0x2B1B: "black square",
    0x2B1C: "white square",
    0x2B50: "star",
    0x2B55: "hollow red circle",
    0x3030: "wavy dash",
    0x303D: "part alternation mark",
    0x3297: "japanese congratulations button",
    0x3299: "japanese secret button",
    0x1F004: "mahjong red dragon",
    0x1F0CF: "joker card",
    0x1F170: "a button blood type",
    0x1F171: "b button blood type",
    0x1F17E: "o button blood type",
    0x1F17F: "parking button",
    0x1F18E: "ab button blood type",
    0x1F191: "cl button",
    0x1F192: "cool button",
    0x1F193: "free button",
    0x1F194: "id button",
    0x1F195: "new button",
    0x1F196: "ng button",
    0x1F197: "ok button",
    0x1F198: "sos button",
    0x1F199: "up button",
    0x1F19A: "vs button",
    0x1F201: "japanese here button",
    0x1F202: "japanese service charge button",
    0x1F21A: "japanese free of charge button",
    0x1F22F: "japanese reserved button",
    0x1F232: "japanese prohibited button",
    0x1F233: "japanese vacancy button",
    0x1F234: "japanese passing grade button",
    0x1F235: "japanese no vacancy button",
    0x1F236: "japanese not free of charge button",
    0x1F237: "japanese monthly amount button",
    0x1F238: "japanese application button",
    0x1F239: "japanese discount button",
    0x1F23A: "japanese open for business button",
    0x1F250: "japanese bargain button",
    0x1F251: "japanese acceptable button",
    0x1F30C: "milky way",
    0x1F46F: "people with bunny ears",
    0x1F4A0: "diamond with a dot",
    0x1F505: "dim button",
    0x1F506: "bright button",
    0x1F518: "radio button",
    0x1F51E: "no one under eighteen",
    0x1F520: "input latin uppercase letters",
    0x1F521: "input latin lowercase letters",
    0x1F522: "input numbers",
    0x1F523: "input symbols",
    0x1F524: "input latin letters",
    0x1F532: "black square button",
    0x1F533: "white square button",
    0x1F534: "red circle",
    0x1F53A: "red triangle pointed up",
    0x1F53B: "red triangle pointed down",
    0x1F53C: "upwards button",
    0x1F53D: "downwards button",
    0x1F5A4: "black heart",
    0x1F44A: "oncoming fist",
    0x1F44C: "ok hand",
    0x1F3F4: "black flag",
    0x1F3F3: "white flag",
    0x1F38C: "crossed flags",
    0x1F6A9: "triangular flag",
    0x1F3C1: "chequered flag",
    0x1F645: "person gesturing no",
    0x1F646: "person gesturing ok",
    0x1F64B: "person raising hand",
    0x1F6BC: "baby station",
    0x1F918: "hand with horns",
    0x1F6D1: "stop octagon",
    0x1F52A: "kitchen knife",
    0x1F385: "santa claus",
    0x1F697: "car",
    0x1F698: "oncoming car",
    0x1F346: "eggplant",
    0x1F90D: "white heart",
    0x1F90E: "brown heart",
    0x1F595: "middle finger",
}


@dataclass(frozen=True)
class Glyph:
    """One emoji: its code point, the name that captions use, and its RGBA bitmap of GLYPH_SIDE pixels."""

    code_point: int
    name: str
    bitmap: Image.Image


def glyph_name(code_point: int) -> str | None:
    """Return the lower-case name that captions use, or None where Unicode has none."""
    if code_point in NAMES:
        return NAMES[code_point]
    name = LEADING_WORDS.sub("", unicodedata.name(chr(code_point), "").lower())
    words = [word for word in re.sub(r"[^a-z0-9]+", " ", name).split() if word not in SPARE_WORDS]
    return " ".join(words) or None


def draw_glyph(font: ImageFont.FreeTypeFont, code_point: int) -> Image.Image | None:
    """Draw one glyph, centered in a transparent square; None where the font has no picture."""
    canvas = Image.new("RGBA", (400, 300))
    ImageDraw.Draw(canvas).text((100, 60), chr(code_point), font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        return None
    cut = canvas.crop(box)
    square = Image.new("RGBA", (GLYPH_SIDE, GLYPH_SIDE))
    square.paste(cut, ((GLYPH_SIDE - cut.width) // 2, (GLYPH_SIDE - cut.height) // 2))
    return square


def load_glyphs(font_path: Path = FONT_PATH) -> list[Glyph]:
    """Return every named glyph of the font in code point order; names are unique."""
    font = ImageFont.truetype(str(font_path), STRIKE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    glyphs: dict[str, Glyph] = {}
    for code_point in (point for block in CODE_POINTS for point in block if point not in PARTS):
        name = glyph_name(code_point)
        bitmap = draw_glyph(font, code_point) if name else None
        if name and bitmap is not None:
            if name in glyphs:
                raise ValueError(f"{code_point:#x} and {glyphs[name].code_point:#x} are both called {name!r}")
            glyphs[name] = Glyph(code_point, name, bitmap)
    return list(glyphs.values())
