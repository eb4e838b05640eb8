"""Rows in single precision out of rows as they are stored, which mostly is half precision."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


def widen(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows [n, d] in fp32, the same numbers; rows that are fp32 already are not copied.

    Half precision is what faiss's scalar quantizer stores, and it reads it on all cores with the processor's own
    instruction: ten times as fast as NumPy, which otherwise takes a fifth of a build.
    """
    if rows.dtype != np.float16 or rows.ndim != 2 or not rows.size:
        return np.ascontiguousarray(rows, dtype=np.float32)
    reader = faiss.ScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16)
    wide: NDArray[np.float32] = reader.decode(np.ascontiguousarray(rows).view(np.uint8))
    return wide
