"""clip-retrieval: embeddings of pictures and captions, indices of embeddings, and what is found in them.

The names below load what they need when they are first used: importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clip_retrieval.version import __version__

if TYPE_CHECKING:
    from clip_retrieval import clip_back
    from clip_retrieval.clip import available_models, load, tokenize
    from clip_retrieval.encoder.load import load_encoder
    from clip_retrieval.end2end.run import clip_end2end
    from clip_retrieval.filter.run import clip_filter
    from clip_retrieval.index.build import clip_index
    from clip_retrieval.index.score import score_index
    from clip_retrieval.inference.run import clip_inference

__all__ = [
    "__version__",
    "available_models",
    "clip_back",
    "clip_end2end",
    "clip_filter",
    "clip_index",
    "clip_inference",
    "load",
    "load_encoder",
    "score_index",
    "tokenize",
]

_HOMES = {
    "available_models": "clip_retrieval.clip",
    "clip_end2end": "clip_retrieval.end2end.run",
    "clip_filter": "clip_retrieval.filter.run",
    "clip_index": "clip_retrieval.index.build",
    "clip_inference": "clip_retrieval.inference.run",
    "load": "clip_retrieval.clip",
    "load_encoder": "clip_retrieval.encoder.load",
    "score_index": "clip_retrieval.index.score",
    "tokenize": "clip_retrieval.clip",
}


def __getattr__(name: str) -> Any:
    if name == "clip_back":  # a module that can be called
        return importlib.import_module("clip_retrieval.clip_back")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
