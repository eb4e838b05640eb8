"""Rows that are zero: samples without this modality, which are in no list and nobody's neighbors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIRST = 4  # dimensions that are looked at of every row


def find_filled(block: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which rows of a block [n, d] are not zero, in order."""
    suspects = np.flatnonzero(~block[:, :FIRST].any(axis=1))  # few: the others need no second look
    filled = np.ones(len(block), np.bool_)
    filled[suspects] = block[suspects].any(axis=1)
    return np.flatnonzero(filled)
