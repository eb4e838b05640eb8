"""Clippie's names: one picture or text to a vector, a list to rows, from .weights files or any other model.

from clip_retrieval.faces.clippie import encode_image, encode_text, load

weights = load(Path("ViT-B-32.weights"))
text_vectors = encode_text(["a lake", "a mountain"], weights.text_encoder)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.faces.model import Clip
from clip_retrieval.faces.openai import load as load_model
from clip_retrieval.faces.texts import TooManyTokensError, make_tokens
from clip_retrieval.tools.scores import softmax

__all__ = ["TooManyTokensError", "Weights", "encode_image", "encode_text", "load", "softmax"]

DEFAULT = "ViT-B-32.weights"
PUBLISHED = {DEFAULT: "ViT-B/32"}  # the name that Clippie downloads, and the same weights here


@dataclass(frozen=True)
class Weights:
    """Both encoders of one model."""

    text_encoder: Clip
    image_encoder: Clip


def load(source: str | Path = DEFAULT) -> Weights:
    """Open a .weights file, any other model, or OpenAI's ViT-B/32, whose weights are fetched at first use."""
    name = str(source)
    model, _ = load_model(name if Path(name).exists() else PUBLISHED.get(name, name), "cpu")
    return Weights(model, model)


@lru_cache(1)
def load_default() -> Weights:
    return load()


def encode_text(text: str | Sequence[str], weights: Weights | Clip | None = None) -> NDArray[np.float32]:
    """Return a vector [d] for a text, [n, d] for a list, of the model's own length.

    A text that is too long is a TooManyTokensError: nothing is cut.
    """
    model = choose(weights, "text_encoder")
    texts = [text] if isinstance(text, str) else list(text)
    if model.takes_clip_tokens:
        make_tokens(texts, model.context_length)
    rows: NDArray[np.float32] = model.encode_text(texts).numpy()
    return rows[0] if isinstance(text, str) else rows


def encode_image(image: Any, weights: Weights | Clip | None = None) -> NDArray[np.float32]:
    """Return a vector [d] for a PIL picture or a path, [n, d] for a list, of the model's own length."""
    rows: NDArray[np.float32] = choose(weights, "image_encoder").encode_image(image).numpy()
    return rows


def choose(weights: Weights | Clip | None, encoder: str) -> Clip:
    if isinstance(weights, Clip):
        return weights
    model: Clip = getattr(weights or load_default(), encoder)
    return model
