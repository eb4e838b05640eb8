"""The types that every encoder speaks. n rows, d dimension, s image side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.preprocess import Preprocess

Pixels = NDArray[np.uint8]  # [n, s, s, 3]; scaling by mean and std happens in the encoder
Embeddings = NDArray[np.float32]  # [n, d], rows of unit length


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder: enough to prepare its input, and to recognise it again."""

    uri: str
    dimension: int
    preprocess: Preprocess
    fingerprint: str  # of the weights: equal weights, equal fingerprint
    precision: str
    device: str
    vocabulary: frozenset[str] | None = None  # the words it was trained on, where that is known


class Encoder(Protocol):
    """Turns prepared pictures and texts into unit embeddings."""

    info: EncoderInfo
    truncated_texts: int  # texts cut to the context length so far

    def encode_images(self, pixels: Pixels) -> Embeddings: ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings: ...


def normalise(rows: NDArray[np.float32]) -> Embeddings:
    """Return the rows divided by their length; rows of length zero stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), dtype=np.float32)
