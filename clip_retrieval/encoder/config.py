"""Which model, on what device, how precise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import option

Chosen = Literal["fp32", "bf16", "fp16", "int8"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder, as it can be written into a file."""

    clip_model: str = option(
        "ViT-B/32",
        help="Model: an OpenAI name (ViT-B/32), open_clip:ARCH/TAG, open_clip:ARCH//path/to/checkpoint, "
        "hf_clip:ORG/NAME, a file or folder of weights, onnx:FOLDER, demo (the embedded one), random:ARCH?seed=0.",
    )
    precision: Precision = option(
        "auto",
        help="Number format of the model. auto: the fastest that the device has units for (fp16 on a GPU; bf16 or int8 "
        "on a CPU) and that stays within cosine 0.999 of fp32 on the first samples, else fp32.",
    )
    device: str = option("auto", help="auto (every GPU, else the CPU), cpu, cuda, or a list such as cuda:0,cuda:1.")
    clip_cache_path: str | None = option(None, help="Folder that model downloads are kept in.")

    def __post_init__(self) -> None:
        if not self.clip_model:
            raise ConfigError("clip_model is empty; name a model such as ViT-B/32 or demo")
