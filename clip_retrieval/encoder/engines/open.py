"""Opens a model on the engine that its kind names: the one place that imports an engine's backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.uri import ModelName, parse_uri
from clip_retrieval.errors import EncoderError
from clip_retrieval.git_lfs import explaining_pointers
from clip_retrieval.installed import need_full

if TYPE_CHECKING:
    from clip_retrieval.encoder.base import Encoder, Workload  # loads NumPy, which options do not need


def check_model_name(uri: str) -> ModelName:
    """Return what a model's name means; raises EncoderError if it means nothing, or if its engine is not installed."""
    name = parse_uri(uri)
    if name.kind not in ("onnx", "hash"):
        an_onnx_folder = "name an ONNX folder of it with onnx:FOLDER, which `clip-retrieval convert` makes elsewhere"
        need_full("torch", f"the model {uri}", EncoderError, instead=an_onnx_folder)
    return name


def open_engine(name: ModelName, config: EncoderConfig, workload: Workload = "query") -> Encoder:
    """Open a model on the engine of its kind."""
    with explaining_pointers(local_place(name), EncoderError):
        return open_on_its_engine(name, config, workload)


def local_place(name: ModelName) -> Path:
    """Return the file or folder that a model is read from; a path that does not exist for models without one."""
    is_file = name.kind == "open_clip" and name.weights is not None
    return Path(str(name.weights) if is_file else name.architecture.removeprefix("local-dir:"))


def open_on_its_engine(name: ModelName, config: EncoderConfig, workload: Workload) -> Encoder:
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
