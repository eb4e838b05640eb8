"""Small faiss indices, trained and written, for tests of files that are changed without being held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


def make(rows: NDArray[np.float32], kind: str) -> Any:
    """Return the index of a faiss key, trained on rows [n, d] and empty."""
    index = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    return index


def write(index: Any, path: Path) -> str:
    faiss.write_index(index, str(path))
    return str(path)
