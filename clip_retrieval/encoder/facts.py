"""What an opened encoder is made of, read from its attributes: neither the engines nor torch are imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.conversion_cache import read_light
from clip_retrieval.encoder.tokenizer import BpeTokenizer
from clip_retrieval.encoder.uri import ModelName

PROBE = ["a photo of a dog"]
NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")  # statistics of BatchNorm, which are not trained


def count_parameters(encoder: Encoder) -> int | None:
    """Return the parameters of the towers that the model was saved with; None if they cannot be counted."""
    sizes = parameter_sizes(encoder)
    towers = encoder.info.towers
    counted = [size for name, size in sizes.items() if ("image" if name.startswith("visual.") else "text") in towers]
    return sum(counted) or None


def count_in_files(name: ModelName, cache: str | None) -> int | None:
    """Return the parameters in the files of a plain model of open_clip; None of other models."""
    checkpoint = read_light(name, cache) if name.kind == "open_clip" else None
    if checkpoint is None:
        return None
    return sum(int(value.size) for part, value in checkpoint.tensors.items() if not part.endswith(NO_PARAMETERS))


def parameter_sizes(encoder: Any) -> dict[str, int]:
    if hasattr(encoder, "model") and hasattr(encoder.model, "named_parameters"):  # a module of torch
        return {name: value.numel() for name, value in encoder.model.named_parameters()}
    if hasattr(encoder, "towers") and hasattr(encoder.towers, "tensors"):  # Mixer's, in numpy
        return {name: value.size for name, value in encoder.towers.tensors.items()}
    return {}


def context_length(encoder: Encoder) -> int | None:
    """Return how many tokens a text may have, start and end included; None if nothing says so."""
    about = getattr(encoder, "about", None)  # an ONNX folder says it without its tokenizer being built
    tokenizer = getattr(encoder, "tokenizer", None) if about is None else about.tokenizer
    return getattr(tokenizer, "context_length", None)


def takes_clip_tokens(encoder: Encoder) -> bool:
    """Say whether the model's own tokenizer gives the ids of CLIP's: tried out, since not every engine says so."""
    own: Any = getattr(encoder, "tokenizer", None)
    context = context_length(encoder)
    if own is None or context is None:
        return True
    ids = own.tokenize(PROBE)[0] if hasattr(own, "tokenize") else own(PROBE)
    return np.array_equal(np.asarray(ids), BpeTokenizer(context)(PROBE))
