"""The query language: what is a sign, what is part of a text."""

from __future__ import annotations

import pytest

from clip_retrieval.errors import QueryError
from clip_retrieval.query.terms import Words, collect_words, format_words, parse_words


@pytest.mark.parametrize(
    "text",
    [
        *("a dog", "a black-and-white t-shirt", "C++", "4*4 truck", "a 2 * 3 grid", "a+b", "a -b", "- people"),
        *("+ 49 30", "rock'n'roll", "it's raining", "a 'quoted' word"),
    ],
)
def test_a_sentence_with_a_hyphen_a_plus_or_an_asterisk_stays_a_text(text: str) -> None:
    assert parse_words(text) == [Words(text.strip())]


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("beach + dog", [("beach", 1), ("dog", 1)]),
        ("beach + 0.5*photo.jpg - people", [("beach", 1), ("photo.jpg", 0.5), ("people", -1)]),
        ("2 * a  -  .5*b", [("a", 2), ("b", -0.5)]),
        ("- people + beach", [("people", -1), ("beach", 1)]),
        ("it's a dog - isn't it", [("it's a dog", 1), ("isn't it", -1)]),
        ("'s morgens - rain", [("'s morgens", 1), ("rain", -1)]),
        ("t-shirt - C++ - a*b", [("t-shirt", 1), ("C++", -1), ("a*b", -1)]),
    ],
)
def test_signs_between_spaces_add_and_take_away(query: str, terms: list[tuple[str, float]]) -> None:
    assert [(term.text, term.weight) for term in parse_words(query)] == terms


def test_quotes_keep_signs_in_a_text() -> None:
    assert parse_words("'salt + pepper' - \"a - b\" + 2*'c'") == [
        Words("salt + pepper", 1, is_quoted=True),
        Words("a - b", -1, is_quoted=True),
        Words("c", 2, is_quoted=True),
    ]
    assert parse_words("'photo.jpg'") == [Words("photo.jpg", 1, is_quoted=True)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "is empty"),
        ("''", "is empty"),
        ("beach - ", "nothing next to it"),
        ("a +  + b", "nothing next to it"),
        ("0*a + b", "weight of 'a' is 0"),
        ("- a - b", "only subtracts"),
    ],
)
def test_what_means_nothing_is_refused(query: str, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        parse_words(query)


@pytest.mark.parametrize("query", ["beach + 0.5*photo.jpg - people", "'salt + pepper' - pizza", "- people + beach"])
def test_the_compact_form_comes_back(query: str) -> None:
    assert format_words(parse_words(query)) == query


def test_options_add_up_with_their_weights() -> None:
    words = collect_words(["beach - dog", "photo.jpg"], ["people - not a sign"], [7], [1, 0.5, 2, 0.25])
    assert [(term.text, term.weight) for term in words] == [
        *(("beach", 1), ("dog", -1), ("photo.jpg", 0.5), ("people - not a sign", -2), ("row 7", 0.25)),
    ]


def test_weights_that_belong_to_nothing_are_refused() -> None:
    with pytest.raises(QueryError, match="1 query cannot have 2 weights"):
        collect_words(["beach"], weights=[1, 2])
    with pytest.raises(QueryError, match="weight of 'beach' is nan"):
        collect_words(["beach"], weights=[float("nan")])
