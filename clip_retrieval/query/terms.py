"""The query language: terms that are added and subtracted, each with a weight.

    beach                                a text, as is any sentence: "a black-and-white t-shirt", "C++", "4*4 truck"
    beach + 0.5*photo.jpg - people       terms between signs that have space on both sides
    'salt + pepper' - pizza              quotes keep signs in a text

What a term's words mean (a text, a file, a URL) is not decided here: to a server every word is a text, the command
line looks for files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import msgspec

from clip_retrieval.errors import QueryError
from clip_retrieval.words import counted

QUOTES = "'\""
SIGN = re.compile(r"\s[+-]\s")
WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*\*\s*(?=\S)")


class Words(msgspec.Struct, frozen=True):
    """A term as written: its words, its weight (negative: subtracted), and whether quotes make it a text."""

    text: str
    weight: float = 1.0
    is_quoted: bool = False
    row: int | None = None  # row of the index, given instead of words


def parse_words(query: str) -> list[Words]:
    """Return the terms of the compact form; one of weight 1 if the query has no signs between spaces.

    Raises QueryError if a term is empty, a quote does not close, or nothing is added.
    """
    pieces = list(split_at_signs(query))
    if len(pieces) == 1:
        text, is_quoted = unquote(query.strip())
        if not text.strip():
            raise QueryError("the query is empty; give a text, a picture or an embedding")
        return [Words(text, 1.0, is_quoted)]
    words = [read_term(sign, piece, query) for sign, piece in pieces]
    if all(term.weight <= 0 for term in words):
        raise QueryError(f'{query!r} only subtracts; add something, such as "beach - people"')
    return words


def split_at_signs(query: str) -> Iterator[tuple[str, str]]:
    """Yield the pieces between signs, each with the sign before it; signs inside quotes do not count."""
    sign, start, at = "+", 0, 0
    first = re.match(r"\s*([+-])\s+(?=\S)", query)
    if first is not None and SIGN.search(query, first.end()):
        sign, start, at = first[1], first.end(), first.end()
    while at < len(query):
        if query[at] in QUOTES and not query[start:at].strip(" \t0123456789.*"):
            at = end_of_quote(query, at)
            continue
        if (found := SIGN.match(query, at)) is not None:
            yield sign, query[start:at]
            sign, start, at = found[0].strip(), found.end() - 1, found.end() - 1
            continue
        at += 1
    yield sign, query[start:]


def end_of_quote(query: str, start: int) -> int:
    """Return the place after a quoted term; after the first character if it is not a quote, as in 's morgens."""
    end = query.find(query[start], start + 1)
    while end >= 0:
        if end + 1 == len(query) or SIGN.match(query, end + 1):
            return end + 1
        end = query.find(query[start], end + 1)
    return start + 1


def read_term(sign: str, piece: str, query: str) -> Words:
    piece = piece.strip()
    found = WEIGHT.match(piece)
    weight, text = (float(found[1]), piece[found.end() :]) if found else (1.0, piece)
    text, is_quoted = unquote(text.strip())
    if not text.strip():
        raise QueryError(f"{query!r} has a sign with nothing next to it; put quotes around a text that contains signs")
    return Words(text, check_weight(-weight if sign == "-" else weight, text), is_quoted)


def unquote(text: str) -> tuple[str, bool]:
    """Return the text without quotes around all of it, and whether it had some."""
    if len(text) >= 2 and text[0] in QUOTES and text[-1] == text[0] and text[0] not in text[1:-1]:
        return text[1:-1], True
    return text, False


def check_weight(weight: float, text: str) -> float:
    if not math.isfinite(weight) or weight == 0:
        raise QueryError(f"the weight of {text!r} is {weight:g}; give a number other than 0")
    return weight


def collect_words(
    queries: Sequence[str], minus: Sequence[str] = (), like: Sequence[int] = (), weights: Sequence[float] = ()
) -> list[Words]:
    """Return the terms of repeated options: each query in its compact form, terms to subtract, and rows to add.

    `weights` belong to queries, minus and like in this order; each factor applies to all terms of its query. Raises
    QueryError where there are more or fewer of them.
    """
    parts = [parse_words(query) for query in queries]
    parts += [[Words(*unquote_words(text, -1.0))] for text in minus]
    parts += [[Words(f"row {row}", row=row)] for row in like]
    if weights and len(weights) != len(parts):
        wanted, given = counted(len(parts), "query", "queries"), counted(len(weights), "weight")
        raise QueryError(f"{wanted} cannot have {given}; give one for each, or none")
    factors = weights or [1.0] * len(parts)
    if parts and all(term.weight * factor <= 0 for terms, factor in zip(parts, factors, strict=True) for term in terms):
        raise QueryError("the query only subtracts; add something with --query or --like")
    return [
        msgspec.structs.replace(term, weight=check_weight(term.weight * factor, term.text))
        for terms, factor in zip(parts, factors, strict=True)
        for term in terms
    ]


def unquote_words(text: str, weight: float) -> tuple[str, float, bool]:
    words, is_quoted = unquote(text.strip())
    if not words.strip():
        raise QueryError("--minus is empty; give a text, a picture or an embedding")
    return words, weight, is_quoted


def format_words(words: Sequence[Words]) -> str:
    """Return the compact form that means these terms."""
    shown = ""
    for place, term in enumerate(words):
        sign = "- " if term.weight < 0 else "+ " if place else ""
        factor = "" if abs(term.weight) == 1 else f"{abs(term.weight):g}*"
        quote = "'" if term.is_quoted or (SIGN.search(term.text) and len(words) > 1) else ""
        shown += f"{' ' if place else ''}{sign}{factor}{quote}{term.text}{quote}"
    return shown
