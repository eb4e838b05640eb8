"""NumPyCLIP's names: arrays in, arrays out, and no torch.

import clip_retrieval.faces.numpyclip as numpyclip

model, preprocess = numpyclip.load("ViT-B/32")
image = preprocess(Image.open("cat.jpg"))[np.newaxis]
logits_per_image, logits_per_text = model(image, numpyclip.tokenize(["a cat", "a dog"]))
probabilities = numpyclip.softmax(logits_per_image, axis=-1)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.faces.model import Clip
from clip_retrieval.faces.openai import load as load_model
from clip_retrieval.faces.pictures import ImagePreprocess
from clip_retrieval.faces.texts import make_tokens
from clip_retrieval.tools.scores import softmax

__all__ = ["load", "softmax", "tokenize"]


def load(name: str, download_root: str | None = None) -> tuple[Clip, ImagePreprocess]:
    """Open a model on the CPU; weights are looked for in `download_root` too."""
    return load_model(name, "cpu", download_root=download_root)


def tokenize(texts: str | Sequence[str]) -> NDArray[np.int64]:
    """Return token ids int64 [n, 77]; a text that is too long is a RuntimeError."""
    return make_tokens(texts).astype(np.int64)
