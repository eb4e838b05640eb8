"""A weight-free encoder for tests and dry runs: only equal inputs get equal embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from clip_retrieval.encoder.base import (
    USUAL_LOGIT_SCALE,
    Embeddings,
    EncoderInfo,
    EncodesTexts,
    Pixels,
    StartsNothing,
    TextEmbeddings,
    Tokens,
    normalize,
)
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.uri import ModelName


class HashEncoder(EncodesTexts, StartsNothing):
    """hash:DIMENSION?size=32: a random projection of a tiny version of the picture, a hash of the text."""

    def __init__(self, name: ModelName) -> None:
        dimension = int(name.architecture)
        preprocess = Preprocess(size=name.option("size", 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        self.info = EncoderInfo(
            uri=name.uri,
            dimension=dimension,
            preprocess=preprocess,
            fingerprint=f"hash-{dimension}-{name.option('seed', 0)}",
            precision="fp32",
            device="cpu",
            logit_scale=USUAL_LOGIT_SCALE,
        )
        self.seed = name.option("seed", 0)
        rng = np.random.default_rng(self.seed)
        self.projection = rng.standard_normal((8 * 8 * 3, dimension)).astype(np.float32)

    def encode_images(self, pixels: Pixels) -> Embeddings:
        steps = np.linspace(0, pixels.shape[1] - 1, 8).astype(int)
        tiny = pixels[:, steps][:, :, steps].reshape(len(pixels), 8 * 8 * 3).astype(np.float32)
        return normalize((tiny - 127.5) @ self.projection)

    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        rows = np.empty((len(texts), self.info.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            salted = f"{self.seed} {text}".encode("utf-8", "replace")
            seed = int.from_bytes(hashlib.sha256(salted).digest()[:8], "little")
            row[:] = np.random.default_rng(seed).standard_normal(self.info.dimension)
        return TextEmbeddings(normalize(rows), truncated_count=0)

    def encode_tokens(self, tokens: Tokens) -> Embeddings:
        return self.encode_texts([str(row.tolist()) for row in tokens])
