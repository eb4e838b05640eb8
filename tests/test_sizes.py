"""Sizes in words."""

from __future__ import annotations

import pytest

from clip_retrieval.sizes import in_bytes


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
