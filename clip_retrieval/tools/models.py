"""The whole of `models info`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.encoder.facts import context_length, count_in_files, count_parameters
from clip_retrieval.encoder.formats.recognize import recognize
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import ModelName, parse_uri
from clip_retrieval.storage import size_of
from clip_retrieval.tools.config import ModelInfoConfig


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model; None for unknown facts."""

    info: EncoderInfo
    kind: str  # the engine's
    format: str | None  # file format; None for models that are not files
    context_length: int | None
    parameters: int | None
    bytes_on_disk: int | None

    def to_json(self) -> dict[str, Any]:
        info = self.info
        return {
            "uri": info.uri,
            "kind": self.kind,
            "format": self.format,
            "dimension": info.dimension,
            "image_size": info.preprocess.size,
            "preprocess": asdict(info.preprocess),
            "towers": list(info.towers),
            "context_length": self.context_length,
            "logit_scale": info.logit_scale,
            "logit_bias": info.logit_bias,
            "precision": info.precision,
            "device": info.device,
            "fingerprint": info.fingerprint,
            "parameters": self.parameters,
            "bytes_on_disk": self.bytes_on_disk,
            "known_words": None if info.vocabulary is None else len(info.vocabulary),
        }


def describe_model(config: ModelInfoConfig) -> ModelFacts:
    """Open the model and describe it; raises EncoderError if it cannot be opened."""
    encoder = load_encoder(config.runtime.of_model(config.clip_model))
    name = parse_uri(config.clip_model)
    return ModelFacts(
        info=encoder.info,
        kind=name.kind,
        format=find_format(name),
        context_length=context_length(encoder),
        parameters=count_parameters(encoder) or count_in_files(name, config.runtime.clip_cache_path),
        bytes_on_disk=bytes_on_disk(name),
    )


def find_format(name: ModelName) -> str | None:
    """Return the format of a file or folder; None for names that are not paths."""
    if name.kind == "onnx":
        return "onnx"
    return recognize(Path(name.architecture)) if name.kind == "checkpoint" else None


def bytes_on_disk(name: ModelName) -> int | None:
    """Return the bytes of a model's files, including weights shared by ONNX graphs; None for names without a path."""
    is_path = name.kind not in ("open_clip", "random", "hash")
    places = [name.architecture if is_path else name.architecture.partition("local-dir:")[2]]
    places += [name.weights] if name.weights and "/" in name.weights else []  # a tag has no slash
    return sum(size_of(Path(place)) for place in places if place and Path(place).exists()) or None
