"""The scripts of captions: what a few words tell with certainty about their language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import regex

SCRIPTS = {
    "Latin": r"\p{Latin}",
    "Cyrillic": r"\p{Cyrillic}",
    "Greek": r"\p{Greek}",
    "Arabic": r"\p{Arabic}",
    "Hebrew": r"\p{Hebrew}",
    "Devanagari": r"\p{Devanagari}",
    "Bengali": r"\p{Bengali}",
    "Tamil": r"\p{Tamil}",
    "Thai": r"\p{Thai}",
    "Hangul (Korean)": r"\p{Hangul}",
    "Kana (Japanese)": r"[\p{Hiragana}\p{Katakana}]",
    "Han (Chinese, Japanese)": r"\p{Han}",
    "Armenian": r"\p{Armenian}",
    "Georgian": r"\p{Georgian}",
    "Ethiopic": r"\p{Ethiopic}",
    "other letters": r"\p{L}",
}
PATTERNS = {name: regex.compile(pattern) for name, pattern in SCRIPTS.items()}
KANA, HAN = "Kana (Japanese)", "Han (Chinese, Japanese)"
NO_LETTERS = "no letters"


def script_of(text: str) -> str:
    """Return the script of most letters of a text; text with kana counts as kana, since Japanese also uses Han."""
    left = text
    counts: Counter[str] = Counter()
    for name, pattern in PATTERNS.items():
        left, found = pattern.subn("", left)
        if found:
            counts[name] = found
        if left.isascii() and not any(map(str.isalpha, left)):
            break
    if not counts:
        return NO_LETTERS
    best = max(counts, key=lambda name: counts[name])
    return KANA if best == HAN and counts[KANA] else best


def count_scripts(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Return the scripts of texts, the most frequent first."""
    return Counter(map(script_of, texts)).most_common()
