"""A model name to an encoder: the one place that picks an engine and imports its backend."""

from __future__ import annotations

from typing import assert_never

from clip_retrieval.encoder.base import Encoder, Workload
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.uri import parse_uri


def load_encoder(model: str | EncoderConfig, *, workload: Workload = "query") -> Encoder:
    """Open the encoder that a URI or a config names, with its weights, on one device.

    For a `bulk` workload an ONNX folder runs on OpenVINO where that is installed: it opens slower and encodes faster.
    Raises EncoderError where there is no such model, or its weights are not here and cannot be fetched.
    """
    config = EncoderConfig(clip_model=model) if isinstance(model, str) else model
    name = parse_uri(config.clip_model)
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


def list_devices(config: EncoderConfig) -> list[str]:
    """Return the devices that the config asks for, one worker each; imports torch only to look for GPUs."""
    if config.device not in ("auto", "cuda"):
        return [device.strip() for device in config.device.split(",") if device.strip()]
    if parse_uri(config.clip_model).kind in ("hash", "onnx"):
        return ["cpu"]
    from clip_retrieval.encoder.engines.openclip import count_gpus

    count = count_gpus()
    return [f"cuda:{i}" for i in range(count)] or ["cuda" if config.device == "cuda" else "cpu"]
