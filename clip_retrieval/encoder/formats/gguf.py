"""clip.cpp's GGUF files: to a Checkpoint, from one, and quantized as by clip.cpp.

Tensor names are transformers' CLIP names, shortened. Danger: the MLP's first (widening) layer is called ffn_down,
and its second ffn_up, the reverse of what other formats say. clip.cpp ignores keys it does not know, so files written
here also have clip.logit_scale (the natural logarithm of the factor), which its own files lack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint, check_attention
from clip_retrieval.encoder.formats.ggml import read_ggml_file
from clip_retrieval.encoder.formats.gguf_blocks import CODES, GgufTensor, Quantized, pack_later
from clip_retrieval.encoder.formats.gguf_file import GgufFile, Value, open_gguf, quantize_matrices, write_gguf_file
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.encoder.formats.safetensors import count_blocks
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

Towers = Literal["both", "text", "image"]
Stored = Literal["f32", "f16"]
Keys = dict[str, Value]
Tensors = Mapping[str, GgufTensor]
Names = dict[str, tuple[str, ...]]  # open_clip's name -> the file's tensors, stacked in this order

TEXT, IMAGE = "transformer.resblocks.", "visual.transformer.resblocks."
BLOCK_PARTS = {
    "attn.out_proj": "attn_out",
    "ln_1": "ln1",
    "ln_2": "ln2",
    "mlp.c_fc": "ffn_down",
    "mlp.c_proj": "ffn_up",
}
TEXT_NAMES: Names = {
    "token_embedding.weight": ("t.token_embd.weight",),
    "positional_embedding": ("t.position_embd.weight",),
    "text_projection": ("text_projection.weight",),
}
IMAGE_NAMES: Names = {
    "visual.class_embedding": ("v.class_embd",),
    "visual.conv1.weight": ("v.patch_embd.weight",),
    "visual.positional_embedding": ("v.position_embd.weight",),
    "visual.proj": ("visual_projection.weight",),
}
TEXT_NORMS, IMAGE_NORMS = {"ln_final": "t.post_ln"}, {"visual.ln_pre": "v.pre_ln", "visual.ln_post": "v.post_ln"}
TRANSPOSED = ("text_projection", "visual.proj")
SAYABLE = {  # fields of open_clip's configuration that GGUF keys can hold
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs"},
}
SHARED_KEYS = (
    "embedding_length feed_forward_length attention.head_count block_count attention.layer_norm_epsilon".split()
)
USUAL_EPSILON = 1e-5
LOGIT_SCALE = math.log(100)  # the bound that OpenAI's models and most others reach in training


def name_tensors(text_layers: int, image_layers: int) -> Names:
    """Return the names of both towers; one with no layers is left out."""
    text = TEXT_NAMES | name_modules(TEXT_NORMS) | name_blocks(TEXT, "t", text_layers) if text_layers else {}
    image = IMAGE_NAMES | name_modules(IMAGE_NORMS) | name_blocks(IMAGE, "v", image_layers) if image_layers else {}
    return text | image


def name_modules(modules: Mapping[str, str]) -> Names:
    kinds = ("weight", "bias")
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for ours, theirs in modules.items() for kind in kinds}


def name_blocks(ours: str, theirs: str, layers: int) -> Names:
    names: Names = {}
    for old, new in ((f"{theirs}.blk.{i}.", f"{ours}{i}.") for i in range(layers)):
        names |= name_modules({new + our_part: old + their_part for our_part, their_part in BLOCK_PARTS.items()})
        for kind in ("weight", "bias"):
            names[f"{new}attn.in_proj_{kind}"] = tuple(f"{old}attn_{letter}.{kind}" for letter in "qkv")
    return names


class GgufTensors(Mapping[str, NDArray[Any]]):
    """A file's tensors under open_clip's names; quantized ones become float32 at each access."""

    def __init__(self, file: GgufFile, names: Names) -> None:
        self.file, self.names = file, names
        missing = [theirs for parts in names.values() for theirs in parts if theirs not in file.tensors]
        if missing:
            raise EncoderError(f"{file.path} is an incomplete CLIP: it does not hold {missing[0]}; convert it again")

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name == "logit_scale":
            return np.array(self.file.get("clip.logit_scale", LOGIT_SCALE), dtype=np.float32)
        parts = [self.file.tensors[theirs].array() for theirs in self.names[name]]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return array.T if name in TRANSPOSED else array

    def __iter__(self) -> Iterator[str]:
        return iter([*self.names, "logit_scale"])

    def __len__(self) -> int:
        return len(self.names) + 1


def read_gguf(path: Path) -> Checkpoint:
    """Read a file of clip.cpp's or of ours; a tower that it lacks is missing from configuration and tensors."""
    return convert_opened(open_gguf("clip", path), path)


def read_ggml(path: Path) -> Checkpoint:
    """Read a file of clip.cpp's from before GGUF, such as ggml-model-f16.bin."""
    return convert_opened(read_ggml_file(path), path)


def convert_opened(file: GgufFile, path: Path) -> Checkpoint:
    try:
        return convert(file)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise EncoderError(f"{path} is broken: its keys make no model ({error})") from error


def convert(file: GgufFile) -> Checkpoint:
    text_layers, image_layers = (count_layers(file, tower) for tower in ("text", "vision"))
    if not text_layers and not image_layers:
        raise EncoderError(f"{file.path} holds neither a text nor an image encoder")
    tensors = GgufTensors(file, name_tensors(text_layers, image_layers))
    config: dict[str, Any] = {"quick_gelu": not file.get("clip.use_gelu")}
    if text_layers:
        config |= {"embed_dim": file.get("clip.text.projection_dim"), "text_cfg": read_config(file, "text")}
    if image_layers:
        config |= {"embed_dim": file.get("clip.vision.projection_dim"), "vision_cfg": read_config(file, "vision")}
    preprocess = read_preprocess(file) if image_layers else Preprocess(224, MEAN, STD)
    return Checkpoint(str(file.path), "clip", config, tensors, preprocess)


def count_layers(file: GgufFile, tower: str) -> int:
    """Return a tower's layers, 0 if it is absent; at most the number of tensors, which bounds a wrong count."""
    count = file.get(f"clip.{tower}.block_count") if file.get(f"clip.has_{tower}_encoder") else 0
    return min(int(count), len(file.tensors))


def read_config(file: GgufFile, tower: str) -> dict[str, Any]:
    """Return open_clip's configuration of one tower."""
    width, hidden, heads, layers, epsilon = (file.get(f"clip.{tower}.{name}") for name in SHARED_KEYS)
    config: dict[str, Any] = {"width": width, "layers": layers}
    head_width = width // heads
    if tower == "text":
        config["vocab_size"] = file.tensors["t.token_embd.weight"].shape[0]
        config |= {"context_length": file.get("clip.text.context_length"), "heads": heads}
    else:
        config |= {name: file.get(f"clip.vision.{name}") for name in ("image_size", "patch_size")}
        config["head_width"] = head_width
    if hidden != 4 * width:
        config["mlp_ratio"] = (hidden + 0.5) / width  # open_clip takes int(width * ratio)
    return config if epsilon == USUAL_EPSILON else config | {"norm_kwargs": {"eps": epsilon}}


def read_preprocess(file: GgufFile) -> Preprocess:
    size, mean, std = (file.get(f"clip.vision.image_{what}") for what in ("size", "mean", "std"))
    if np.array_equal(np.array([mean, std], np.float32), np.array([MEAN, STD], np.float32)):
        mean, std = MEAN, STD  # the file holds them rounded to float32
    return Preprocess(size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def write_gguf(
    checkpoint: Checkpoint, path: Path, vocabulary: Sequence[str], *, dtype: Stored = "f16", towers: Towers = "both"
) -> None:
    """Write a model, or one of its towers, with everything that clip.cpp needs.

    `vocabulary` has the tokens in the order of their ids, spelled in CLIP's byte alphabet. The patch kernel
    is float16 for every dtype, since clip.cpp takes no other; biases and norms are float32.
    """
    check_attention(checkpoint, "clip.cpp's GGUF")
    if isinstance(checkpoint.model_config.get("vision_cfg", {}).get("layers"), list | tuple) and towers != "text":
        raise EncoderError(f"{checkpoint.source} has a ResNet for pictures, for which clip.cpp's GGUF has no place")
    text_layers, image_layers = (count_blocks(checkpoint.tensors, prefix) for prefix in (TEXT, IMAGE))
    check_sayable(checkpoint, name_tensors(text_layers, image_layers))
    names = name_tensors(text_layers if towers != "image" else 0, image_layers if towers != "text" else 0)
    if not names:
        raise EncoderError(f"{checkpoint.source} has no {towers} encoder to write; leave the choice of tower out")
    tensors: dict[str, GgufTensor] = {}
    for ours, parts in names.items():
        for i, theirs in enumerate(parts):
            load = partial(take_part, checkpoint.tensors, ours, (i, len(parts)))
            shape = load().shape
            matrix_type = "f16" if theirs == "v.patch_embd.weight" else dtype
            tensors[theirs] = pack_later(load, shape, matrix_type if len(shape) > 1 else "f32")
    write_gguf_file(path, make_keys(checkpoint, tensors, vocabulary, dtype), tensors)


def check_sayable(checkpoint: Checkpoint, names: Names) -> None:
    """Refuse a model that clip.cpp would run as another one."""
    odd = [name for name in checkpoint.tensors if name not in names and name != "logit_scale"]
    lacking = [name for name in names if name not in checkpoint.tensors]
    for part, known in SAYABLE.items():
        odd += [key for key, value in checkpoint.model_config.get(part, {}).items() if value and key not in known]
    if (checkpoint.preprocess.resize_mode, checkpoint.preprocess.interpolation) != ("shortest", "bicubic"):
        odd.append("another way to resize pictures")
    if odd:
        raise EncoderError(f"{checkpoint.source} has {odd[0]}, for which clip.cpp's GGUF has no place")
    if lacking:
        raise EncoderError(f"{checkpoint.source} is an incomplete CLIP: it does not hold {lacking[0]}")


def take_part(tensors: Mapping[str, NDArray[Any]], name: str, which: tuple[int, int]) -> NDArray[Any]:
    """Return one of the equal parts that are stacked in a tensor, in the file's orientation."""
    array = np.split(tensors[name], which[1])[which[0]] if which[1] > 1 else tensors[name]
    return array.T if name in TRANSPOSED else array


def make_keys(checkpoint: Checkpoint, tensors: Tensors, vocabulary: Sequence[str], dtype: Stored) -> Keys:
    has_text, has_image = "t.token_embd.weight" in tensors, "v.class_embd" in tensors
    kind = "two-tower" if has_text and has_image else "text-only" if has_text else "vision-only"
    config, preprocess = checkpoint.model_config, checkpoint.preprocess
    keys = {
        "general.architecture": Value("string", "clip"),
        "general.file_type": Value("u32", CODES[dtype]),
        "general.name": Value("string", Path(checkpoint.source).stem),
        "general.description": Value("string", f"{kind} CLIP model"),
        "clip.has_text_encoder": Value("bool", has_text),
        "clip.has_vision_encoder": Value("bool", has_image),
        "clip.use_gelu": Value("bool", not config.get("quick_gelu", False)),
        "clip.logit_scale": Value("f32", float(checkpoint.tensors.get("logit_scale", np.float32(LOGIT_SCALE)))),
    }
    if has_text:
        size = tensors["t.token_embd.weight"].shape[0]
        if len(vocabulary) != size:
            raise EncoderError(f"{checkpoint.source} has {size} tokens, its vocabulary {len(vocabulary)}; give its own")
        keys |= make_tower_keys("clip.text.", config["text_cfg"], tensors)
        keys["clip.text.context_length"] = Value("u32", tensors["t.position_embd.weight"].shape[0])
        keys["tokenizer.ggml.tokens"] = Value("string", list(vocabulary))
    if has_image:
        keys |= make_tower_keys("clip.vision.", config["vision_cfg"], tensors)
        keys["clip.vision.image_size"] = Value("u32", preprocess.size)
        keys["clip.vision.patch_size"] = Value("u32", tensors["v.patch_embd.weight"].shape[-1])
        keys["clip.vision.image_mean"] = Value("f32", list(preprocess.mean))
        keys["clip.vision.image_std"] = Value("f32", list(preprocess.std))
    return keys


def make_tower_keys(prefix: str, config: Mapping[str, Any], tensors: Tensors) -> Keys:
    """Return the keys that both towers have; the number of heads defaults as in open_clip."""
    letter, projection = ("t", "text_projection") if prefix == "clip.text." else ("v", "visual_projection")
    width = tensors[f"{letter}.position_embd.weight"].shape[1]
    heads = config.get("heads", 8) if letter == "t" else width // config.get("head_width", 64)
    hidden = tensors[f"{letter}.blk.0.ffn_down.weight"].shape[0]
    epsilon = (config.get("norm_kwargs") or {}).get("eps", USUAL_EPSILON)
    layers = sum(name.startswith(f"{letter}.blk.") and name.endswith(".ln1.bias") for name in tensors)
    values = [Value("u32", number) for number in (width, hidden, heads, layers)] + [Value("f32", epsilon)]
    keys = {f"{prefix}{name}": value for name, value in zip(SHARED_KEYS, values, strict=True)}
    return keys | {f"{prefix}projection_dim": Value("u32", tensors[f"{projection}.weight"].shape[0])}


def quantize_gguf(in_path: Path, out_path: Path, block_type: Quantized) -> None:
    """Write a file with its matrices quantized, byte for byte as clip.cpp's own quantizer does from the same file."""
    quantize_matrices(open_gguf("clip", in_path), out_path, block_type)
