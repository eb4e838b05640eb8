"""Vectors as queries: brought to length 1 once, and never changed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clip_retrieval.query.embed import embed_vector


def test_a_vector_of_length_1_is_taken_to_the_last_bit(unit_rows: Callable[..., Any]) -> None:
    rows = unit_rows(200, 64)
    assert all((embed_vector(row, "a row").embedding == row).all() for row in rows)
    lengths = np.linalg.norm([embed_vector(3.0 * row, "a row").embedding for row in rows], axis=1)
    assert np.abs(lengths - 1).max() < 1e-6
    long = rows[0] * np.float32(1 + 1e-4)  # nearly of length 1 is not enough
    assert abs(np.linalg.norm(embed_vector(long, "a row").embedding.astype(float)) - 1) < 1e-6
