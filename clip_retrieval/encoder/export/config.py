"""Options of `convert` and `quantize`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from clip_retrieval.encoder.uri import ModelName, parse_uri
from clip_retrieval.errors import ConfigError, EncoderError
from clip_retrieval.options import option

Target = Literal["onnx", "open_clip", "hf", "gguf", "clippie"]
Towers = Literal["both", "text", "image"]
OnnxType = Literal["int8", "int4"]
GgufType = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
QuantizedType = Literal["int8", "int4", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "2", "3", "6", "7", "8"]
GGML_NUMBERS: dict[str, GgufType] = {
    "2": "q4_0",
    "3": "q4_1",
    "6": "q5_0",
    "7": "q5_1",
    "8": "q8_0",
}  # numbers that clip.cpp's quantize accepts


def check_source(config: ConvertConfig) -> ModelName:
    """Return the model that is converted; raises EncoderError if its name shows that it cannot be."""
    name = parse_uri(config.source)
    if name.kind == "hash":
        raise EncoderError(f"{config.source} has no weights to convert")
    if name.kind == "onnx" and config.source != "demo":
        raise EncoderError(f"{config.source} is ONNX already; convert the model it was made from, or quantize it")
    return name


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """A model, and what to convert it to."""

    POSITIONAL = ("source", "out", "to")

    source: str = option(help="Model to convert: any name that --clip_model takes, a file or a folder.")
    out: str = option(help="Folder to make, or for gguf and clippie the file.")
    to: Target = option(
        help="Format to write: onnx runs without torch, open_clip and hf are folders, gguf is clip.cpp's, "
        "clippie its .weights."
    )
    text_only: bool = option(False, help="Write the text encoder only.")
    image_only: bool = option(False, help="Write the image encoder only.")
    dtype: Literal["f32", "f16"] | None = option(
        None, help="Number format of the matrices. None: f16 for gguf, f32 for the others."
    )
    clip_cache_path: str | None = option(None, help="Folder for model downloads.")

    def __post_init__(self) -> None:
        if self.text_only and self.image_only:
            raise ConfigError("--text_only and --image_only exclude each other; leave both out for both encoders")

    @property
    def towers(self) -> Towers:
        return "text" if self.text_only else "image" if self.image_only else "both"


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """A converted model, and how many bits its weights are to have."""

    POSITIONAL = ("source", "out", "type")

    source: str = option(help="Model to quantize: an ONNX folder of `convert` for int8 and int4, a GGUF file for q*.")
    out: str = option(help="Folder, or for q* the GGUF file, to make.")
    type: QuantizedType = option(
        help="Number format of the weights; clip.cpp's numbers 2, 3, 6, 7, 8 are q4_0, q4_1, q5_0, q5_1, q8_0."
    )
    packed: bool = option(
        False,
        help="Keep the text encoder also in ONNX Runtime's layout in memory: a process has its first text "
        "embedding a sixth sooner, and the folder grows by 1.6 text encoders. For int8 and int4.",
    )
    images: str | None = option(
        None, help="Folder of pictures, on which the embeddings before and after are compared. None: generated ones."
    )

    def __post_init__(self) -> None:
        if self.packed and self.kind in GGML_NUMBERS.values():
            raise ConfigError("--packed is for int8 and int4, which run on ONNX Runtime; leave it out for GGUF")

    @property
    def kind(self) -> OnnxType | GgufType:
        """The type by its name, also if its number was given."""
        return GGML_NUMBERS.get(self.type) or cast("OnnxType | GgufType", self.type)
