"""The npy file that grows is the one that numpy writes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from clip_retrieval.embeddings.npy_writer import HEADER_BYTES, NpyWriter


@pytest.mark.parametrize("row_count", [0, 1, 6, 7, 8, 1000])
def test_the_file_equals_that_of_numpy_save_byte_for_byte(tmp_path: Path, row_count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((row_count, 5)).astype(np.float32)
    expected = io.BytesIO()
    np.save(expected, rows.astype(np.float16))

    with NpyWriter(tmp_path / "rows", 5, np.dtype(np.float16)) as writer:
        for start in range(0, row_count, 7):
            writer.append(rows[start : start + 7])

    assert (tmp_path / "rows").read_bytes() == expected.getvalue()
    assert (tmp_path / "rows").stat().st_size == HEADER_BYTES + row_count * 5 * 2
