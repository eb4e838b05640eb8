"""A Checkpoint to a CLIP folder of transformers: both towers, or one of them with its projection.

The folder: config.json, model.safetensors, preprocessor_config.json if there is an image tower, and CLIP's
tokenizer (vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json) if there is a text tower. Its ids
are open_clip's, with these exceptions in transformers' code: it neither repairs texts (ftfy) nor reads HTML's &amp;,
takes <|endoftext|> within a text for the end, and makes no final sigma when it lowers Greek capitals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint, check_attention
from clip_retrieval.encoder.formats.gguf import Stored, Towers
from clip_retrieval.encoder.formats.huggingface import (
    ACTIVATIONS,
    LEGACY_END,
    TRANSPOSED,
    USUAL_EPSILON,
    Names,
    name_image,
    name_text,
)
from clip_retrieval.encoder.formats.huggingface_preprocess import RESAMPLES
from clip_retrieval.encoder.formats.openclip_folder import PLAIN, Loaders, new_folder, write_json, write_weights
from clip_retrieval.encoder.formats.safetensors import count_blocks
from clip_retrieval.encoder.tokenizer import END_TEXT, PUBLISHED, START_TEXT, clip_vocabulary, read_merges
from clip_retrieval.errors import EncoderError

Json = dict[str, Any]

TOKENS = 49408  # size of CLIP's vocabulary; the last two are start and end of text
START, END = TOKENS - 2, TOKENS - 1
ARCHITECTURES = {
    ("image", "text"): ("CLIPModel", "clip"),
    ("text",): ("CLIPTextModelWithProjection", "clip_text_model"),
    ("image",): ("CLIPVisionModelWithProjection", "clip_vision_model"),
}
TOWER_CONFIGS = {"text": "text_cfg", "image": "vision_cfg"}
# Keys that may be set without effect; every other key that is set must be PLAIN.
USUAL = {"proj_type": "linear", "pos_embed_type": "learnable"}
WITHOUT_EFFECT = {"attn_pooler_queries", "attn_pooler_heads"}
USUAL_POOLING = {"text_cfg": "argmax", "vision_cfg": "tok"}
TOP_LEVEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}
DTYPES = {"f32": "float32", "f16": "float16"}


def write_huggingface(checkpoint: Checkpoint, folder: Path, *, dtype: Stored = "f32", towers: Towers = "both") -> None:
    """Write a model, or one of its towers, for transformers' from_pretrained; a lone tower is written as its own model.

    With f16, matrices are halves; biases, norms and the logit scale stay float32. A lone tower keeps the logit scale,
    which transformers reports as unexpected and ignores.
    """
    present = choose_towers(checkpoint, towers)
    names = name_tensors(checkpoint, present)
    check_sayable(checkpoint, present, names)
    with new_folder(folder) as staged:
        write_weights(staged / "model.safetensors", name_loaders(checkpoint, names), dtype)
        write_json(staged / "config.json", describe(checkpoint, present) | {"torch_dtype": DTYPES[dtype]})
        if "text" in present:
            write_tokenizer(staged, checkpoint.tensors["positional_embedding"].shape[0])
        if "image" in present:
            write_json(staged / "preprocessor_config.json", describe_preprocess(checkpoint))


def choose_towers(checkpoint: Checkpoint, towers: Towers) -> tuple[str, ...]:
    check_attention(checkpoint, "transformers")
    present = tuple(tower for tower in checkpoint.towers if towers in ("both", tower))
    if not present:
        raise EncoderError(f"{checkpoint.source} has no {towers} encoder to write; leave the choice of tower out")
    return present


def name_tensors(checkpoint: Checkpoint, present: tuple[str, ...]) -> Names:
    names: Names = {}
    if "text" in present:
        names |= name_text(count_blocks(checkpoint.tensors, "transformer.resblocks."))
    if "image" in present:
        names |= name_image(count_blocks(checkpoint.tensors, "visual.transformer.resblocks."))
    return names


def check_sayable(checkpoint: Checkpoint, present: tuple[str, ...], names: Names) -> None:
    """Refuse a model that transformers would run as another one."""
    config = checkpoint.model_config
    odd = [f"{key} in its configuration" for key, value in config.items() if value and key not in TOP_LEVEL]
    for tower in present:
        odd += list_odd_keys(checkpoint, TOWER_CONFIGS[tower])
    own = [name for name in checkpoint.tensors if ("image" if name.startswith("visual.") else "text") in present]
    odd += [f"the tensor {name}" for name in own if name not in names and name != "logit_scale"]
    refuse(checkpoint, odd)
    needed = [*names, "logit_scale"] if len(present) > 1 else names
    lacking = [name for name in needed if name not in checkpoint.tensors]
    if lacking:
        raise EncoderError(f"{checkpoint.source} is an incomplete CLIP: it does not hold {lacking[0]}; fetch it again")
    if "image" in present:
        refuse(checkpoint, list_odd_pictures(checkpoint))
    if "text" in present and len(checkpoint.tensors["token_embedding.weight"]) < TOKENS:
        refuse(checkpoint, [f"fewer than the {TOKENS} tokens of CLIP's tokenizer"])


def refuse(checkpoint: Checkpoint, odd: list[str]) -> None:
    if odd:
        raise EncoderError(
            f"{checkpoint.source} has {odd[0]}, for which transformers' CLIP has no place; write it with --to onnx"
        )


def list_odd_keys(checkpoint: Checkpoint, tower: str) -> list[str]:
    """Return the settings of a tower for which transformers has no key."""
    config: Json = checkpoint.model_config[tower]
    if isinstance(config.get("layers"), list | tuple):
        return ["a ModifiedResNet as its image encoder"]
    odd = [
        f"{key} {value} in its {tower}"
        for key, value in config.items()
        if value and key not in PLAIN[tower] | WITHOUT_EFFECT and USUAL.get(key) != value
    ]
    pooling, end = config.get("pool_type", USUAL_POOLING[tower]), config.get("eos_id")
    if pooling != USUAL_POOLING[tower] and (tower, pooling, end) != ("text_cfg", "eos", END):
        odd.append(f"pool_type {pooling} in its {tower}")
    if (config.get("norm_kwargs") or {}).keys() - {"eps"}:
        odd.append(f"norm_kwargs {config['norm_kwargs']} in its {tower}")
    if find_activation(checkpoint, tower) is None:
        odd.append(f"act_kwargs {config['act_kwargs']} in its {tower}")
    return odd


def list_odd_pictures(checkpoint: Checkpoint) -> list[str]:
    """Return what transformers cannot express of the shape and preprocessing of pictures."""
    preprocess = checkpoint.preprocess
    if preprocess.resize_mode == "longest":
        return ["pictures that are padded to squares"]
    rows = len(checkpoint.tensors["visual.positional_embedding"])
    high, wide = checkpoint.tensors["visual.conv1.weight"].shape[2:]
    grid = math.isqrt(rows - 1)  # without the class token
    if high != wide or grid * grid + 1 != rows or grid * wide != preprocess.size:
        return ["pictures that are not a square of whole patches"]
    return []


def find_activation(checkpoint: Checkpoint, tower: str) -> str | None:
    """Return what transformers calls a tower's activation; of two names for the same, the last one."""
    options = dict(checkpoint.model_config[tower].get("act_kwargs") or {})
    if options == {"approximate": "none"}:
        options = {}
    wanted = bool(checkpoint.model_config.get("quick_gelu")), options
    return next((name for name in reversed(ACTIVATIONS) if ACTIVATIONS[name] == wanted), None)


def name_loaders(checkpoint: Checkpoint, names: Names) -> Loaders:
    """Return transformers' tensors by name, each read on demand."""
    extra: Names = {"logit_scale": ("logit_scale",)} if "logit_scale" in checkpoint.tensors else {}
    return {
        theirs: partial(take_part, checkpoint.tensors, ours, (i, len(parts)))
        for ours, parts in (names | extra).items()
        for i, theirs in enumerate(parts)
    }


def take_part(tensors: Mapping[str, NDArray[Any]], name: str, which: tuple[int, int]) -> NDArray[Any]:
    """Return one of the equal parts that are stacked in a tensor, in transformers' orientation."""
    i, count = which
    array = np.split(tensors[name], count)[i] if count > 1 else tensors[name]
    return array.T if name in TRANSPOSED else array


def describe(checkpoint: Checkpoint, present: tuple[str, ...]) -> Json:
    """Return config.json: of both towers, or all of one tower's at the top level."""
    architecture, model_type = ARCHITECTURES[present]
    config: Json = {"architectures": [architecture], "model_type": model_type}
    parts = {tower: describe_tower(checkpoint, tower) for tower in present}
    if len(parts) == 1:
        return config | parts[present[0]]
    nested = {"text_config": parts["text"], "vision_config": parts["image"]}
    return config | {"projection_dim": parts["text"]["projection_dim"]} | nested


def describe_tower(checkpoint: Checkpoint, tower: str) -> Json:
    """Return text_config or vision_config: sizes from the shapes, the rest from open_clip's configuration."""
    key = TOWER_CONFIGS[tower]
    prefix = "visual." if tower == "image" else ""
    blocks = f"{prefix}transformer.resblocks."
    tensors, config = checkpoint.tensors, checkpoint.model_config[key]
    hidden, width = tensors[f"{blocks}0.mlp.c_fc.weight"].shape
    found = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "projection_dim": tensors["visual.proj" if tower == "image" else "text_projection"].shape[1],
        "num_hidden_layers": count_blocks(tensors, blocks),
        "hidden_act": find_activation(checkpoint, key),
        "layer_norm_eps": (config.get("norm_kwargs") or {}).get("eps", USUAL_EPSILON),
    }
    return found | (describe_image(checkpoint, width) if tower == "image" else describe_text(checkpoint))


def describe_text(checkpoint: Checkpoint) -> Json:
    config, tensors = checkpoint.model_config["text_cfg"], checkpoint.tensors
    count = len(tensors["token_embedding.weight"])
    takes_highest = config.get("pool_type", "argmax") == "argmax" and count > TOKENS
    return {
        "num_attention_heads": config.get("heads", 8),
        "max_position_embeddings": tensors["positional_embedding"].shape[0],
        "vocab_size": count,
        "bos_token_id": START,
        "eos_token_id": LEGACY_END if takes_highest else END,
        "pad_token_id": END,
    }


def describe_image(checkpoint: Checkpoint, width: int) -> Json:
    return {
        "num_attention_heads": width // checkpoint.model_config["vision_cfg"].get("head_width", 64),
        "num_channels": 3,
        "image_size": checkpoint.preprocess.size,
        "patch_size": checkpoint.tensors["visual.conv1.weight"].shape[-1],
    }


def describe_preprocess(checkpoint: Checkpoint) -> Json:
    """Return preprocessor_config.json; resizing to a square cuts nothing afterwards."""
    preprocess = checkpoint.preprocess
    square = {"height": preprocess.size, "width": preprocess.size}
    is_cut = preprocess.resize_mode == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocess.size} if is_cut else square,
        "resample": {name: number for number, name in RESAMPLES.items()}[preprocess.interpolation],
        "do_center_crop": is_cut,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    }


def write_tokenizer(folder: Path, context_length: int) -> None:
    """Write CLIP's vocabulary and merges, and the words for start, end, padding and the unknown."""
    start, end = PUBLISHED[START_TEXT], PUBLISHED[END_TEXT]
    specials = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    own: Json = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length}
    own |= {"do_lower_case": True, "add_prefix_space": False, "errors": "replace"}
    merges = read_merges()
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(clip_vocabulary())})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", own | specials)
    write_json(folder / "special_tokens_map.json", specials)
