"""CLIP's byte-pair tokenizer without torch: the same ids as open_clip's SimpleTokenizer.

`clip_merges.txt.gz` holds the 48,894 merges of OpenAI's bpe_simple_vocab_16e6 that CLIP uses, in order of rank: two
tokens in a line. A token is bytes, shown as 256 printable characters, `</w>` at the end of a word.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]  # [n, context]; start, text, end, then zeros

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
FIRST_MERGE = 2 * 256
MERGE_COUNT = 49152 - 256 - 2
VOCABULARY_SIZE = FIRST_MERGE + MERGE_COUNT + 2  # plus start and end of text
WORD_END = "</w>"
START_TEXT, END_TEXT = "<start_of_text>", "<end_of_text>"
WORD = rf"{START_TEXT}|{END_TEXT}|'s|'t|'re|'ve|'m|'ll|'d|[%(letter)s]+|[%(digit)s]|[^\s%(letter)s%(digit)s]+"
ASCII_WORD = re.compile(WORD % {"letter": "a-z", "digit": "0-9"}, re.ASCII)
GZIP = 31  # zlib's window bits for a gzip file
KEPT_WORDS = 65_536
FEW_PAIRS = 64
PUBLISHED = {START_TEXT: "<|startoftext|>", END_TEXT: "<|endoftext|>"}  # in transformers' and clip.cpp's files


def printable_bytes() -> dict[int, str]:
    """Return the character that stands for each byte: itself if it is printable Latin-1, else one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_lines() -> bytes:
    return zlib.decompress(MERGES.read_bytes(), GZIP)


def read_merges() -> list[str]:
    """Return the merges by rank, each two tokens with a space between them."""
    return read_lines().decode().rstrip("\n").split("\n")


class Ranks(dict[str, int]):
    """Ranks of merges, MERGE_COUNT for a pair that is not a merge.

    A short text needs 30 pairs, which are found in the lines of the file, in 3 ms; a dictionary of all merges
    takes 17 ms. It is made when FEW_PAIRS are known.
    """

    def __init__(self) -> None:
        self.lines: bytes | None = b"\n" + read_lines()  # until all are known

    def __missing__(self, pair: str) -> int:
        lines = self.lines
        if lines is None:
            return MERGE_COUNT
        if len(self) < FEW_PAIRS:
            place = lines.find(f"\n{pair}\n".encode())
            rank = self[pair] = MERGE_COUNT if place < 0 else lines.count(b"\n", 0, place)
            return rank
        merges = lines.decode().strip("\n").split("\n")
        self.update(zip(merges, range(len(merges)), strict=True))
        self.lines = None
        return self[pair]


@cache
def find_words() -> Callable[[str], list[str]]:
    """Return a function that cuts any text into words; ASCII_WORD does the same for ASCII texts."""
    import regex  # 15 ms of every start, for Unicode's classes, which most texts do not need

    found: Callable[[str], list[str]] = regex.compile(
        WORD % {"letter": r"\p{L}", "digit": r"\p{N}"}, regex.IGNORECASE
    ).findall
    return found


def clean_text(text: str) -> str:
    """Repair what wrong decodings left, resolve HTML entities, squeeze white space."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import html

        import ftfy  # a sixth of the start of a light process, and most texts do not need it

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


class BpeTokenizer:
    """Texts to token ids [n, context]: lower case, white space squeezed, cut to the context with the end kept.

    Ids: the 256 bytes in the order of their characters, the same at the end of a word, then the merges by rank, then
    start and end of text. No two merges give the same token, so the merge that made a token gives its id.
    """

    def __init__(self, context_length: int = 77) -> None:
        self.context_length = context_length
        self.characters = printable_bytes()
        self.byte_ids = {character: i for i, character in enumerate(sorted(self.characters.values(), key=ord))}
        self.ranks = Ranks()
        self.start, self.end = FIRST_MERGE + MERGE_COUNT, FIRST_MERGE + MERGE_COUNT + 1
        self.word_ids = lru_cache(KEPT_WORDS)(self.merge_word)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        cleaned = clean_text(text).lower()
        words = ASCII_WORD.findall(cleaned) if cleaned.isascii() else find_words()(cleaned)
        return [token for word in words for token in self.word_ids(word)]

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
            return (self.start if word == START_TEXT else self.end,)
        characters = [self.characters[byte] for byte in word.encode("utf-8")]
        parts = [(character, self.byte_ids[character]) for character in characters]
        parts[-1] = (characters[-1] + WORD_END, self.byte_ids[characters[-1]] + len(self.byte_ids))
        while len(parts) > 1:
            rank = min(self.ranks[f"{a} {b}"] for (a, _), (b, _) in pairwise(parts))
            if rank == MERGE_COUNT:
                break
            parts = self.join_pairs(parts, rank)
        return tuple(i for _, i in parts)

    def join_pairs(self, parts: list[tuple[str, int]], rank: int) -> list[tuple[str, int]]:
        joined: list[tuple[str, int]] = []
        i = 0
        while i < len(parts):
            token = parts[i][0]
            if i + 1 < len(parts) and self.ranks[f"{token} {parts[i + 1][0]}"] == rank:
                joined.append((token + parts[i + 1][0], FIRST_MERGE + rank))
                i += 2
            else:
                joined.append(parts[i])
                i += 1
        return joined


def clip_vocabulary() -> list[str]:
    """Return the 49,408 tokens by id, as transformers' and clip.cpp's files spell them; for `write_gguf`."""
    alphabet = sorted(printable_bytes().values(), key=ord)
    merged = (merge.replace(" ", "") for merge in read_merges())
    return [*alphabet, *(token + WORD_END for token in alphabet), *merged, *PUBLISHED.values()]
