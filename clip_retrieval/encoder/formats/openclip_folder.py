"""A Checkpoint to a folder of open_clip's, and what writers of folders share: atomic writes, streamed weights.

The folder: open_clip_config.json, {"model_cfg": what open_clip.CLIP takes, "preprocess_cfg": the fields of its
PreprocessCfg}, and open_clip_model.safetensors with the names of its state_dict. safetensors' own library writes only
from arrays that are all in memory and contiguous, so the file (see safetensors.py) is written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint, check_attention
from clip_retrieval.encoder.formats.gguf import Stored, Towers
from clip_retrieval.encoder.formats.huggingface import Names, name_image, name_text
from clip_retrieval.encoder.formats.huggingface_preprocess import Positive
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.encoder.formats.safetensors import DTYPES
from clip_retrieval.encoder.preprocess import Preprocess, ResizeMode
from clip_retrieval.errors import EncoderError
from clip_retrieval.json_files import check_shape, read_json
from clip_retrieval.storage import made_whole

CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"
Side = Annotated[int, Meta(ge=1, le=65536)]
Loaders = Mapping[str, Callable[[], NDArray[Any]]]  # a file's tensors, each read when it is written

# Settings of a tower with which its tensors still have the names of OpenAI's transformers.
SHARED = {"width", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs", "pool_type"}
PLAIN = {
    "vision_cfg": SHARED | {"image_size", "patch_size", "head_width", "patch_dropout"},
    "text_cfg": SHARED | {"context_length", "vocab_size", "heads", "eos_id", "pad_id"},
}
ALIGNMENT = 8  # bytes, of the tensors' start
DTYPE_NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class PreprocessConfig:
    """open_clip's preprocess_cfg, with its defaults, except that the size comes from the model."""

    size: int | tuple[Side, Side] = 224
    mean: tuple[float, float, float] | float = MEAN
    std: tuple[Positive, Positive, Positive] | float = STD
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int | tuple[int, ...] = 0


@dataclass(frozen=True)
class VisionConfig:
    """The fields of open_clip's vision_cfg that models set, so that an error names the field of a wrong type."""

    width: Side = 768
    layers: int | tuple[int, int, int, int] = 12
    head_width: Side = 64
    mlp_ratio: float = 4.0
    patch_size: Side | None = 16
    image_size: int | tuple[int, int] = 224
    pool_type: str = "tok"
    timm_model_name: str | None = None
    timm_pool: str | None = "avg"
    timm_proj: str | None = "linear"
    act_kwargs: dict[str, Any] | None = None
    norm_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class TextConfig:
    """The fields of open_clip's text_cfg that models set."""

    width: Side = 512
    layers: Side = 12
    heads: Side = 8
    mlp_ratio: float = 4.0
    context_length: Side = 77
    vocab_size: Annotated[int, Meta(ge=1)] = 49408
    eos_id: int = 2
    pad_id: int = 0
    pool_type: str = "argmax"
    hf_model_name: str | None = None
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None
    act_kwargs: dict[str, Any] | None = None
    norm_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """open_clip's model_cfg. open_clip checks the fields that are not here."""

    embed_dim: Side
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = False
    custom_text: bool = False


@dataclass(frozen=True)
class OpenClipConfig:
    """open_clip_config.json."""

    model_cfg: ModelConfig
    preprocess_cfg: PreprocessConfig = PreprocessConfig()


def read_config(path: Path) -> tuple[dict[str, Any], PreprocessConfig]:
    """Return model_cfg unchanged from an open_clip_config.json, and preprocess_cfg; raises EncoderError."""
    config = read_json(path, dict[str, Any], EncoderError)
    said = check_shape(config, OpenClipConfig, path, EncoderError)
    return config["model_cfg"], said.preprocess_cfg


def to_preprocess(config: PreprocessConfig, source: str) -> Preprocess:
    """Return how pictures are prepared; raises EncoderError if that is not supported."""
    height, width = config.size if isinstance(config.size, tuple) else (config.size, config.size)
    if height != width:
        raise EncoderError(f"{source} takes pictures of {width} x {height}; only square ones can be prepared here")
    std = config.std if isinstance(config.std, tuple) else (config.std,) * 3
    if height < 1 or min(std) <= 0:
        raise EncoderError(f"{source} takes pictures of {height} pixels with a std of {std}; both must be above 0")
    return Preprocess(
        size=height,
        mean=config.mean if isinstance(config.mean, tuple) else (config.mean,) * 3,
        std=std,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",  # random is bicubic too
        resize_mode=config.resize_mode,
        fill=config.fill_color if isinstance(config.fill_color, int) else config.fill_color[0],
    )


def write_openclip(checkpoint: Checkpoint, folder: Path, *, dtype: Stored = "f32", towers: Towers = "both") -> None:
    """Write a model of two towers for open_clip.create_model("local-dir:FOLDER").

    With f16, matrices are halves; biases, norms and single numbers stay float32.
    """
    check_openclip(checkpoint, towers)
    with new_folder(folder) as staged:
        loaders = {name: partial(checkpoint.tensors.__getitem__, name) for name in checkpoint.tensors}
        write_weights(staged / WEIGHTS_NAME, loaders, dtype)
        config = {"model_cfg": checkpoint.model_config, "preprocess_cfg": describe_preprocess(checkpoint.preprocess)}
        write_json(staged / CONFIG_NAME, config)


def check_openclip(checkpoint: Checkpoint, towers: Towers) -> None:
    """Refuse what open_clip.create_model would not load, or would load with another transform."""
    source, present = checkpoint.source, checkpoint.towers
    check_attention(checkpoint, "open_clip")
    if len(present) < 2 or towers != "both":
        only = present[0] if len(present) == 1 else towers
        raise EncoderError(
            f"open_clip always builds both towers, so the {only} tower of {source} alone cannot become its folder; "
            "write it with --to onnx, gguf or hf"
        )
    if checkpoint.preprocess.interpolation == "nearest":
        raise EncoderError(f"{source} resizes pictures to the nearest pixel, which open_clip cannot; use --to hf")
    if "logit_scale" not in checkpoint.tensors:
        raise EncoderError(f"{source} is an incomplete CLIP: it does not hold logit_scale; fetch it again")
    config = checkpoint.model_config
    check_plain_tower(checkpoint, "text_cfg", name_text(config["text_cfg"].get("layers", 12)))
    if isinstance(config["vision_cfg"].get("layers", 12), int):
        check_plain_tower(checkpoint, "vision_cfg", name_image(config["vision_cfg"].get("layers", 12)))


def check_plain_tower(checkpoint: Checkpoint, tower: str, names: Names) -> None:
    """Refuse a tower without variations whose tensors do not match its configuration."""
    if not checkpoint.model_config[tower].keys() <= PLAIN[tower]:
        return  # open_clip checks the variations
    is_image = tower == "vision_cfg"
    own = {name for name in checkpoint.tensors if name.startswith("visual.") == is_image}
    for name in names:
        if name not in own:
            raise EncoderError(f"{checkpoint.source} is an incomplete CLIP: it does not hold {name}; fetch it again")
    for name in sorted(own - names.keys() - {"logit_scale", "logit_bias"}):
        raise EncoderError(f"{checkpoint.source} holds {name}, which its configuration has no place for; use --to onnx")


def describe_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """Return open_clip's preprocess_cfg."""
    return {
        "size": preprocess.size,
        "mode": "RGB",
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize_mode,
        "fill_color": preprocess.fill,
    }


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; it is renamed to its final name only if the block succeeds."""
    with made_whole(folder) as staged:
        staged.mkdir()
        yield staged


def write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=to_plain)
    path.write_text(text + "\n", encoding="utf-8")


def to_plain(value: Any) -> Any:
    """Return NumPy numbers as numbers that JSON has."""
    return value.item()


def write_weights(path: Path, loaders: Loaders, dtype: Stored) -> None:
    """Write a safetensors file, widest numbers first so that all are aligned; one tensor at a time is in memory."""
    kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for name, load in loaders.items():
        array = load()
        kinds[name] = choose_dtype(array, dtype), array.shape
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        kind, shape = kinds[name]
        end = offset + kind.itemsize * math.prod(shape)
        header[name] = {"dtype": DTYPE_NAMES[kind], "shape": shape, "data_offsets": (offset, end)}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            file.write(convert_numbers(name, loaders[name](), kinds[name][0]).data)


def choose_dtype(array: NDArray[Any], dtype: Stored) -> np.dtype[Any]:
    """Return what a tensor is stored as: integers unchanged, halves only for matrices."""
    if array.dtype.kind != "f":
        return array.dtype
    return np.dtype("<f2" if dtype == "f16" and array.ndim > 1 else "<f4")


def convert_numbers(name: str, array: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        found = np.asarray(array, dtype=kind, order="C")
    if kind.itemsize == 2 and kind.kind == "f" and not np.isfinite(found).all():
        raise EncoderError(f"{name} holds numbers that are too large for f16; write it as f32")
    return found
