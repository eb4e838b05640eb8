"""Index folders to query: pictures as files or in tars, embedded by the weight-free encoder and indexed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval.encoder.load import load_encoder

MODEL = "hash:16?size=32"
ENCODER = {"clip_model": MODEL, "fingerprint": "hash-16-0", "dimension": 16, "precision": "fp32"}


@pytest.fixture(scope="session")
def write_index() -> Callable[..., Path]:
    """Give a function that writes an index folder whose row r is the hash of its caption r, with any metadata."""

    def write(
        folder: Path,
        metadata: pd.DataFrame | Sequence[pd.DataFrame],
        *,
        rows: NDArray[np.float32] | None = None,
        manifest: dict[str, Any] | None = ENCODER,
    ) -> Path:
        parts = [metadata] if isinstance(metadata, pd.DataFrame) else metadata
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        for i, part in enumerate(parts):
            part.to_parquet(folder / "metadata" / f"metadata_{i}.parquet")
        captions = [str(caption) for part in parts for caption in part["caption"]]
        vectors = load_encoder(MODEL).encode_texts(captions) if rows is None else rows
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(folder / "image.index"))
        if manifest is not None:
            (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": manifest}))
        return folder

    return write
