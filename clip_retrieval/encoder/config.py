"""Which model, on what device, how precise; and how pictures are read for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import check_least, option

Chosen = Literal["fp32", "bf16", "fp16", "int8"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Decode = Literal["fast", "exact"]
Transparency = Literal["auto", "white", "drop"]

MAX_PIXELS = 178_956_970  # Pillow's own limit for "this is an attack"


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
    device: str = option(
        "auto", help="auto (every GPU, else the CPU), cpu, cuda, or a list such as cuda:0,cuda:1.", may_change=True
    )
    clip_cache_path: str | None = option(None, help="Folder for model downloads.", may_change=True)

    def __post_init__(self) -> None:
        if not self.clip_model:
            raise ConfigError("clip_model is empty; name a model such as ViT-B/32 or demo")


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How the bytes of a picture become pixels."""

    decode: Decode = option(
        "fast",
        help="fast: decode large JPEGs at a half, a quarter or an eighth, and resize only what the model sees. "
        "Embeddings of photographs stay within cosine 0.99 of exact ones; those of screenshots, with thin lines and "
        "small text, may differ more. exact: exactly the pixels of the model's own transform, which resizes pictures "
        "with a palette (GIFs) or 1 bit without interpolation: there the two differ much, and fast is closer to what "
        "people see.",
    )
    transparency: Transparency = option(
        "auto",
        help="white: put transparent pictures on white. drop: drop their alpha, as the models' own transforms "
        "do. auto: drop with --decode exact, else white.",
    )
    exif_orientation: bool = option(
        False,
        help="Turn pictures upright as their EXIF says; without it they are read as stored, which is what "
        "the models' own transforms do.",
    )
    max_pixels: int = option(
        MAX_PIXELS,
        help="Refuse pictures with more pixels than this (too_large), before memory is allocated.",
        least=1,
    )

    def __post_init__(self) -> None:
        check_least(self)
        if self.transparency == "auto":  # resolved here, so that manifests say what was done
            object.__setattr__(self, "transparency", "drop" if self.decode == "exact" else "white")


REFERENCE = PictureConfig(decode="exact")  # the models' own transforms, and clip-retrieval 2
AS_BEFORE = PictureConfig(decode="exact", transparency="white")  # folders whose manifest does not mention pictures
