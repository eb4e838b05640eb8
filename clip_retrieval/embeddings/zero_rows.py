"""Zero rows: samples without this modality, which are never hits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIRST = 4  # dimensions read of every row; only rows with zeros there are read whole


def find_filled(block: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which rows of a block [n, d] are not zero, in order."""
    suspects = np.flatnonzero(~block[:, :FIRST].any(axis=1))  # few: the others need no second look
    filled = np.ones(len(block), np.bool_)
    filled[suspects] = block[suspects].any(axis=1)
    return np.flatnonzero(filled)
