"""A model name to an encoder: the one place that picks an engine and imports its backend."""

from __future__ import annotations

from clip_retrieval.encoder.base import GPU_BATCH, USUAL_BATCH, Encoder, Workload
from clip_retrieval.encoder.config import Chosen, EncoderConfig
from clip_retrieval.encoder.devices import is_on_cpu
from clip_retrieval.encoder.engines.open import check_model_name, open_engine
from clip_retrieval.encoder.precision import cpu_precisions
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.installed import is_installed


def load_encoder(model: str | EncoderConfig, *, workload: Workload = "query") -> Encoder:
    """Open the encoder that a URI or a config names, with its weights, on one device.

    For a `bulk` workload on a CPU a model of torch is converted to ONNX, once, and runs on OpenVINO, which encodes
    several times faster. A query uses what was converted before.
    Raises EncoderError if there is no such model, or its weights are not here and cannot be fetched.
    """
    config = EncoderConfig(clip_model=model) if isinstance(model, str) else model
    name = check_model_name(config.clip_model)
    if name.kind in ("checkpoint", "open_clip", "random"):
        from clip_retrieval.encoder.conversion_cache import open_converted

        converted = open_converted(name, config, workload)
        if converted is not None:
            return converted
    return open_engine(name, config, workload)


def convert_without_torch(config: EncoderConfig) -> None:
    """Convert a model for bulk work if that needs no torch and no download; raises errors of the model."""
    name = parse_uri(config.clip_model)
    if name.kind in ("checkpoint", "open_clip"):
        from clip_retrieval.encoder.conversion_cache import convert_light

        convert_light(name, config)


def list_precisions(config: EncoderConfig) -> tuple[Chosen, ...]:
    """Return the number formats that bulk work may use for this model, the fastest first; the last is fp32."""
    name = parse_uri(config.clip_model)
    if name.kind in ("checkpoint", "open_clip", "random") and not is_on_cpu(config):
        return ("fp16", "fp32")
    if name.kind == "hash" or name.weights == "onnxruntime" or not is_installed("openvino"):
        return ("fp32",)
    if name.kind == "onnx":
        return ("bf16", "fp32") if "bf16" in cpu_precisions() else ("fp32",)
    return cpu_precisions()


def best_batch_size(device: str) -> int:
    """Return how many pictures an encoder is to get at once; fixed for each kind of device, so results are the same."""
    return GPU_BATCH if device.startswith("cuda") else USUAL_BATCH


def expect_batches(encoder: Encoder, size: int) -> None:
    """Have an encoder prepare for many batches of this size: record a GPU's work, or open the graph."""
    if encoder.info.device.startswith("cuda"):
        from clip_retrieval.encoder.engines.openclip import OpenClipEncoder

        assert isinstance(encoder, OpenClipEncoder)
        encoder.expect_batches(size)
        return
    from clip_retrieval.encoder.engines.onnx import OnnxEncoder

    if isinstance(encoder, OnnxEncoder) and "image" in encoder.info.towers:
        encoder.open_image_side()
