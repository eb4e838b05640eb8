"""Sizes and names in words."""

from __future__ import annotations

import pytest

from clip_retrieval.options import parse_bytes
from clip_retrieval.words import bound_above, in_bytes, is_hidden, with_article


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (1200, "1.2 kB"), (12_345, "12.3 kB"),
        (99_960, "100 kB"), (123_456, "123 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (1_234_567, "1.2 MB"),
        (345_600_000, "346 MB"), (3.44e9, "3.4 GB"), (2e12, "2.0 TB"), (5e15, "5,000.0 TB"),
    ],
)  # fmt: skip
def test_a_size_is_told_in_the_unit_that_suits_it(count: float, words: str) -> None:
    assert in_bytes(count) == words


def test_a_noun_gets_its_article() -> None:
    assert [with_article(name) for name in ("IndexIVFFlat", "int", "list", "NoneType")] == [
        "an IndexIVFFlat", "an int", "a list", "a NoneType",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "bound"),
    [(1, "1B"), (9_999, "9999B"), (10_000, "10kB"), (53_001, "54kB"), (99_999_999, "100000kB"), (310_000_001, "311MB")],
)
def test_a_bound_is_no_less_than_what_it_is_for(count: int, bound: str) -> None:
    assert bound_above(count) == bound
    assert parse_bytes(bound) >= count


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("__MACOSX/x.jpg", True),
        ("my__MACOSX/x.jpg", False),
        (".git", True), ("a/.git/b.jpg", True), ("a/._b.jpg", True), ("...", True), ("a.jpg", False),
        ("./a.jpg", False), ("../a.jpg", False), ("a/./b.jpg", False), ("a/../b.jpg", False), ("a.b/c", False),
    ],
)  # fmt: skip
def test_a_path_is_hidden_where_a_name_in_it_starts_with_a_dot(path: str, *, hidden: bool) -> None:
    assert is_hidden(path) == hidden
