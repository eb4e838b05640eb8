"""Embeddings folders to index: unit rows, with metadata, in our layout or in that of clip-retrieval 2."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

ENCODER = {"clip_model": "hash:16?size=32", "fingerprint": "hash-16-0", "dimension": 16, "precision": "fp32"}


def make_unit_rows(count: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def write_parts(folder: Path, name: str, parts: Sequence[NDArray[Any]]) -> None:
    width = len(str(len(parts)))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts):
        np.save(folder / name / f"{name}_{i:0{width}d}.npy", part)


@pytest.fixture(scope="session")
def unit_rows() -> Callable[..., NDArray[np.float32]]:
    """Give a function from count, dimension and seed to rows of length 1."""
    return make_unit_rows


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """Give a function that writes an embeddings folder of images and texts, lists of arrays, and their metadata."""

    def write(
        folder: Path,
        images: Sequence[NDArray[Any]] = (),
        texts: Sequence[NDArray[Any]] = (),
        *,
        label: str = "row",
        manifest: bool = True,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, parts in (("img_emb", images), ("text_emb", texts)):
            if parts:
                write_parts(folder, name, parts)
        start, parts = 0, images or texts
        (folder / "metadata").mkdir(exist_ok=True)
        for i, part in enumerate(parts):
            captions = [f"{label} {row}" for row in range(start, start + len(part))]
            name = f"metadata_{i:0{len(str(len(parts)))}d}.parquet"
            pd.DataFrame({"caption": captions}).to_parquet(folder / "metadata" / name)
            start += len(part)
        if manifest:
            (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": ENCODER}))
        return folder

    return write


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep faiss's threads from waiting for each other, which takes longer than work on small indices."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)
