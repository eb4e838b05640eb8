"""Cosines to probabilities and ranks: pure functions on arrays. n pictures, m texts, c labels, d dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import USUAL_LOGIT_SCALE, Embeddings, EncoderInfo, normalize
from clip_retrieval.tools.config import PLACE, ScoreKind

Floats = NDArray[np.float32]


def cosines(images: Embeddings, texts: Embeddings) -> Floats:
    """Return [n, m]: the cosine of each picture and each text, whose rows have unit length."""
    found: Floats = images @ texts.T
    return found


def softmax(x: Any, axis: int = -1) -> NDArray[Any]:
    """Return probabilities that sum to 1 along an axis, finite for values of any size."""
    values = np.asarray(x)
    wide = values.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=axis, keepdims=True))
    shares: NDArray[Any] = powers / powers.sum(axis=axis, keepdims=True)
    return shares.astype(values.dtype if values.dtype.kind == "f" else np.float32)


def sigmoid(logits: NDArray[np.floating[Any]]) -> Floats:
    """Return 1 / (1 + exp(-x)), written with tanh, which cannot overflow."""
    found: Floats = (0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))).astype(np.float32)
    return found


def logits(cosine: Floats, info: EncoderInfo) -> Floats:
    """Return scale * cosine + bias, with the scale and bias of the model's training."""
    scale = USUAL_LOGIT_SCALE if info.logit_scale is None else info.logit_scale
    return np.float32(scale) * cosine + np.float32(info.logit_bias or 0.0)


def choose_scores(kind: ScoreKind, info: EncoderInfo) -> Literal["softmax", "sigmoid"]:
    """Return how this model's logits become probabilities; a bias means it was trained to judge each pair alone."""
    if kind == "auto":
        return "softmax" if info.logit_bias is None else "sigmoid"
    return kind


def logit_notes(kind: Literal["softmax", "sigmoid"], info: EncoderInfo) -> list[str]:
    """Return a note for the logit scale or bias if the weights lack it and a default is used."""
    notes = []
    if info.logit_scale is None:
        notes.append(f"{info.uri} does not say its logit scale; {USUAL_LOGIT_SCALE:g} is used")
    if kind == "sigmoid" and info.logit_bias is None:
        notes.append(f"{info.uri} has no logit bias, and was not trained for sigmoid; 0 is used")
    return notes


def fill_templates(label: str, templates: Sequence[str]) -> list[str]:
    return [template.replace(PLACE, label) for template in templates or (PLACE,)]


def average_prompts(rows: Embeddings, label_count: int) -> Embeddings:
    """Return [c, d] of [c * templates, d]: the mean of each label's prompts, on the unit sphere again."""
    means: Floats = rows.reshape(label_count, -1, rows.shape[1]).mean(axis=1)
    return normalize(means)


def ranks_of_truth(cosine: Floats, truth: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return [n]: how many labels score at least as high as the right one; 0 is a hit.

    A tie counts against the model, and so does a score of NaN.
    """
    own = cosine[np.arange(len(cosine)), truth][:, None]
    ranks: NDArray[np.int64] = cosine.shape[1] - 1 - (cosine < own).sum(axis=1)
    return ranks
