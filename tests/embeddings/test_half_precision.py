"""Half precision, read fast: every number equals NumPy's, for rows of any layout."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen

EVERY = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)


def same_bits(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    numbers = ~np.isnan(wanted)
    return bool(
        (np.isnan(found) == ~numbers).all() and (found.view(np.uint32) == wanted.view(np.uint32))[numbers].all()
    )


def test_every_number_is_what_numpy_makes_of_it() -> None:
    assert same_bits(widen(EVERY), EVERY.astype(np.float32))


@pytest.mark.parametrize("rows", [EVERY[::3], EVERY[:, ::2], EVERY[5:6], EVERY[:0], EVERY[[7, 3]], EVERY.T])
def test_rows_in_any_order_of_memory(rows: NDArray[np.float16]) -> None:
    assert same_bits(widen(rows), rows.astype(np.float32))


def test_single_precision_is_not_copied() -> None:
    rows = np.ones((3, 2), np.float32)
    assert widen(rows) is rows


@pytest.mark.parametrize("kind", [np.float64, ">f2", ">f4"])
def test_other_kinds_are_numpys_affair(kind: object) -> None:
    rows = np.array([[1.5, -0.25], [3.0, 65504.0]]).astype(kind)  # type: ignore[call-overload]
    assert same_bits(widen(rows), np.array([[1.5, -0.25], [3.0, 65504.0]], np.float32))
