"""A path to the kind of model it holds, by its content; only for ONNX the names of files decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.clippie import find_pickle, read_clippie
from clip_retrieval.encoder.formats.ggml import MAGIC as GGML
from clip_retrieval.encoder.formats.gguf import read_ggml, read_gguf
from clip_retrieval.encoder.formats.huggingface import read_huggingface
from clip_retrieval.encoder.formats.huggingface_preprocess import read_object
from clip_retrieval.encoder.formats.mixer import read_mixer
from clip_retrieval.encoder.formats.openai_pt import NOT_WEIGHTS, TorchArchive, read_openai, read_weights
from clip_retrieval.encoder.formats.safetensors import looks_like_safetensors
from clip_retrieval.encoder.uri import GGUF_HUB_PREFIX, HUB_PREFIX
from clip_retrieval.errors import EncoderError
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.paths import describe_special

Format = Literal["open_clip", "huggingface", "openai", "mixer", "state_dict", "gguf", "ggml", "clippie", "onnx"]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAGICS: dict[bytes, Format] = {b"GGUF": "gguf", GGML: "ggml"}
HUB_FORMATS: dict[str, Format] = {HUB_PREFIX: "huggingface", GGUF_HUB_PREFIX: "gguf"}
ONNX_FILES = ("visual.onnx", "textual.onnx")


def recognize(path: Path) -> Format:
    """Return what a file or folder holds; raises EncoderError if it is nothing known.

    A name on a hub (hf-hub:ORG/NAME) is a model of transformers, as hf_clip: means; its content is not read.
    """
    for prefix, kind in HUB_FORMATS.items():
        if str(path).startswith(prefix):
            return kind
    if path.is_dir():
        return recognize_folder(path)
    if not path.exists():
        raise EncoderError(f"there is no file or folder {path}")
    return recognize_file(path, read_start(path))


def recognize_file(path: Path, start: bytes) -> Format:
    """Return what a file holds, by its first bytes; Clippie's files begin with any bytes, so their end counts."""
    for magic, kind in MAGICS.items():
        if start.startswith(magic):
            return kind
    if find_pickle(path) is not None:
        return "clippie"
    if pointer := describe_pointer(start):
        raise EncoderError(f"{path} is {pointer}")
    if path.suffix == ".onnx":  # protobuf has no magic number
        return "onnx"
    if start.startswith((b"PK", b"\x80")) or looks_like_safetensors(path):
        return recognize_names(path, read_weights(path))
    raise EncoderError(
        f"{path} is not a known model: looked for GGUF, a torch archive (zip), safetensors, "
        "Clippie's .weights and .onnx"
    )


def read_start(path: Path) -> bytes:
    try:
        if kind := describe_special(path):
            raise EncoderError(f"{path} is {kind}, not a file")
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error


def recognize_folder(folder: Path) -> Format:
    if (folder / "open_clip_config.json").exists():
        return "open_clip"
    if any((folder / name).exists() for name in ONNX_FILES):
        return "onnx"
    if (folder / "config.json").exists() and "model_type" in read_object(folder / "config.json"):
        return "huggingface"
    if any((folder / name).exists() for name in WEIGHT_FILES):
        return recognize_names(folder, read_weights(folder))
    raise EncoderError(
        f"{folder} holds no known model: looked for open_clip_config.json, config.json with a model_type, "
        f"{', '.join(ONNX_FILES)}, {', '.join(WEIGHT_FILES)}"
    )


def recognize_names(path: Path, names: Iterable[str]) -> Format:
    """Return the format of weights by the names of their tensors."""
    known = set(names)
    if any(".mixBlocks." in name for name in known):
        return "mixer"
    if any(name.startswith(("text_model.", "vision_model.")) for name in known):
        if path.is_file() and (path.parent / "config.json").exists():
            return "huggingface"
        raise EncoderError(f"{path} holds weights of transformers, but the config.json that belongs to them is missing")
    if NOT_WEIGHTS[0] in known or is_script(path):
        return "openai"
    if "logit_scale" in known or any(name.startswith(("visual.", "text.")) for name in known):
        return "state_dict"
    raise EncoderError(
        f"{path} holds tensors, but none with the names of a CLIP (visual., text., text_model., mixBlocks)"
    )


def is_script(path: Path) -> bool:
    """Say whether an archive is OpenAI's kind, a TorchScript module, and not a saved dict."""
    return path.is_file() and not looks_like_safetensors(path) and TorchArchive(path).has("constants.pkl")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model whose file describes it completely; raises EncoderError for others."""
    kind = recognize(path)
    if kind in READERS:
        return READERS[kind](path)
    raise EncoderError(f"{path} {INCOMPLETE[kind].format(path=path)}")


READERS: dict[Format, Callable[[Path], Checkpoint]] = {
    "openai": read_openai,
    "huggingface": lambda path: read_huggingface(path if path.is_dir() else path.parent),
    "mixer": read_mixer,
    "gguf": read_gguf,
    "ggml": read_ggml,
    "clippie": read_clippie,
}
INCOMPLETE: dict[Format, str] = {
    "state_dict": "does not say its architecture and activation; use open_clip:ARCH/{path}",
    "open_clip": "is an open_clip folder; use open_clip:local-dir:{path}",
    "onnx": "is an ONNX model, which holds a graph, not a checkpoint; use onnx:{path}",
}
