"""CLIP's byte-pair tokenizer without torch: the same ids as open_clip's SimpleTokenizer.

Format of the vocabulary: OpenAI's bpe_simple_vocab_16e6, as open_clip installs it; 48,894 merges, in order of rank.
A token is bytes, shown as 256 printable characters, `</w>` at the end of a word.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import ftfy
import numpy as np
import regex
from numpy.typing import NDArray

Tokens = NDArray[np.int32]  # [n, context]; start, text, end, then zeros

MERGE_COUNT = 49152 - 256 - 2
WORD_END = "</w>"
START_TEXT, END_TEXT = "<start_of_text>", "<end_of_text>"
WORDS = regex.compile(
    rf"{START_TEXT}|{END_TEXT}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
KEPT_WORDS = 65_536


def printable_bytes() -> dict[int, str]:
    """Return the character that stands for each byte: itself where it is printable Latin-1, else one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_merges() -> list[tuple[str, str]]:
    """Return the merges by rank, from the file that open_clip brings; open_clip itself is not imported."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    lines = (
        gzip.decompress((Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    )
    return [tuple(line.split()) for line in lines[1 : MERGE_COUNT + 1]]  # type: ignore[misc]


class BpeTokenizer:
    """Texts to token ids [n, context]: lower case, white space squeezed, cut to the context with the end kept."""

    def __init__(self, context_length: int = 77) -> None:
        self.context_length = context_length
        self.characters = printable_bytes()
        merges = read_merges()
        # Ids follow the order of bytes as characters: the printable ones first.
        alphabet = sorted(self.characters.values(), key=ord)
        tokens = [
            *alphabet,
            *(token + WORD_END for token in alphabet),
            *(a + b for a, b in merges),
            START_TEXT,
            END_TEXT,
        ]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.start, self.end = self.ids[START_TEXT], self.ids[END_TEXT]
        self.word_ids = lru_cache(KEPT_WORDS)(self.merge_word)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        clean = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        return [token for word in WORDS.findall(clean) for token in self.word_ids(word)]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        return self.tokenize(texts)[0]

    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Return the ids, and how many texts were cut because they did not fit."""
        rows = np.zeros((len(texts), self.context_length), dtype=np.int32)
        room = self.context_length - 2  # start and end of text
        truncated = 0
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)
            truncated += len(ids) > room
            row[: min(len(ids), room) + 2] = [self.start, *ids[:room], self.end]
        return rows, truncated

    def merge_word(self, word: str) -> tuple[int, ...]:
        """Join the pair of lowest rank, everywhere in the word, until no pair has one."""
        if word in (START_TEXT, END_TEXT):
            return (self.ids[word],)
        parts = [self.characters[byte] for byte in word.encode("utf-8")]
        parts[-1] += WORD_END
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, MERGE_COUNT))
            if best not in self.ranks:
                break
            parts = join_pair(parts, best)
        return tuple(self.ids[part] for part in parts)


def join_pair(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            joined.append(parts[i] + parts[i + 1])
            i += 2
        else:
            joined.append(parts[i])
            i += 1
    return joined
