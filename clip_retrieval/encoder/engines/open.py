"""Opens a model on the engine that its kind names: the one place that imports an engine's backend."""

from __future__ import annotations

from typing import assert_never

from clip_retrieval.encoder.base import Encoder, Workload
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.uri import ModelName


def open_engine(name: ModelName, config: EncoderConfig, workload: Workload = "query") -> Encoder:
    """Open a model on the engine that its kind says."""
    match name.kind:
        case "hash":
            from clip_retrieval.encoder.engines.hashing import HashEncoder

            return HashEncoder(name)
        case "checkpoint":
            from clip_retrieval.encoder.engines.checkpoint import open_checkpoint

            return open_checkpoint(name, config)
        case "onnx":
            from clip_retrieval.encoder.engines.onnx import open_onnx

            return open_onnx(name, config, workload)
        case "open_clip" | "random":
            from clip_retrieval.encoder.engines.openclip import open_openclip

            return open_openclip(name, config)
        case _:
            assert_never(name.kind)
