"""Captions: names in sentences, names with words left out, and which glyphs a caption speaks of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STOP_WORDS = frozenset(
    (
        "a an and at behind but by for from i in into is its no non of off on one or out over the to under up with "
        "without"
    ).split()
)
# "no" and numbers carry meaning in names; they stay part of the caption but never stand alone.
TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "{} emoji",
    "a {}",
    "a picture of a {}",
    "a photo of a {}",
    "a drawing of a {}",
    "an image of {}",
    "picture of {}",
    "photo of {}",
    "icon of a {}",
    "an emoji of a {}",
    "the {}",
    "a small {}",
    "{} icon",
)


@dataclass(frozen=True)
class Caption:
    """A text, the content words in it, and the glyph that it was made from."""

    text: str
    words: tuple[int, ...]
    glyph: int
    is_whole: bool


class CaptionMaker:
    """Makes captions of the named glyphs and says which glyphs each one fits."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self.names = names
        self.random = random.Random(seed)
        content = {word for name in names for word in name.split() if word not in STOP_WORDS}
        self.base = {word: word[:-1] if word.endswith("s") and word[:-1] in content else word for word in content}
        self.ids = {word: i for i, word in enumerate(sorted(set(self.base.values())))}
        self.has_word = torch.zeros(len(names), len(self.ids), dtype=torch.bool)  # [glyphs, words]
        for i, name in enumerate(names):
            self.has_word[i, self.word_ids(name.split())] = True
        self.name_sizes = self.has_word.sum(1)

    @property
    def vocabulary(self) -> list[str]:
        """Every content word that captions hold, plurals included."""
        return sorted({form for word in self.base for form in (word, plural(word))})

    def word_ids(self, words: Sequence[str]) -> list[int]:
        return sorted({self.ids[self.base[word]] for word in words if word in self.base})

    def whole(self, glyph: int) -> Caption:
        words = self.names[glyph].split()
        return Caption(self.in_template(words), tuple(self.word_ids(words)), glyph, is_whole=True)

    def partial(self, glyph: int) -> Caption:
        """Keep some of the words, at least one with content; sometimes shuffled, sometimes one alone."""
        words = self.names[glyph].split()
        content = [word for word in words if word not in STOP_WORDS]
        if self.random.random() < 0.45:
            kept = [self.random.choice(content)]
        else:
            share = self.random.choice((0.4, 0.6, 0.8))
            kept = [word for word in words if self.random.random() < share]
            if not any(word in self.base for word in kept):
                kept = [self.random.choice(content)]
        ids = tuple(self.word_ids(kept))
        if self.random.random() < 0.15:
            self.random.shuffle(kept)
        if self.random.random() < 0.08:
            kept = [plural(word) if word in self.base else word for word in kept]
        return Caption(self.in_template(kept), ids, glyph, is_whole=False)

    def in_template(self, words: Sequence[str]) -> str:
        return self.random.choice(TEMPLATES).format(" ".join(words))

    def targets(self, captions: Sequence[Caption]) -> Tensor:
        """Return the share of each glyph in each caption [captions, glyphs]; rows sum to 1.

        A whole name means its glyph. Part of a name means every glyph that has all its words; where one
        of them is called exactly so, half of the share is its own.
        """
        rows = torch.zeros(len(captions), len(self.names))
        for row, caption in zip(rows, captions, strict=True):
            if caption.is_whole:
                row[caption.glyph] = 1
                continue
            fits = self.has_word[:, list(caption.words)].all(1)
            exact = fits & (self.name_sizes == len(caption.words))
            row[fits] = 1 / fits.sum()
            if exact.any():
                row *= 0.5
                row[exact] += 0.5 / exact.sum()
        return rows


def plural(word: str) -> str:
    return word if word.endswith("s") or not word.isalpha() else word + "s"
