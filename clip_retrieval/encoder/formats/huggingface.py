"""CLIP folders of transformers (config.json and weights) to open_clip's names, shapes and configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.huggingface_preprocess import read_object, read_preprocess
from clip_retrieval.encoder.formats.openai_pt import read_weights
from clip_retrieval.encoder.formats.safetensors import count_blocks
from clip_retrieval.errors import EncoderError
from clip_retrieval.json_files import check_shape

Tensors = dict[str, NDArray[Any]]
Config = Mapping[str, Any]
Names = dict[str, tuple[str, ...]]  # open_clip's name of a tensor, and transformers' tensors that are stacked for it

MODEL_TYPES = ("clip", "clip_text_model", "clip_vision_model")
# open_clip's models of other families, by the beginning of their model_type; the first match is used.
OPEN_CLIP_NAMES = {
    "siglip2": "open_clip:ViT-B-16-SigLIP2/webli or open_clip:hf-hub:timm/ViT-B-16-SigLIP2",
    "siglip": "open_clip:ViT-B-16-SigLIP/webli or open_clip:hf-hub:timm/ViT-B-16-SigLIP",
    "metaclip_2": "open_clip:ViT-H-14-worldwide-quickgelu/metaclip2_worldwide",
    "chinese_clip": "the multilingual open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
    "altclip": "the multilingual open_clip:xlm-roberta-large-ViT-H-14/frozen_laion5b_s13b_b90k",
    "mobileclip": "open_clip:MobileCLIP-S1/datacompdr",
}
TEXT, IMAGE = "text_model.", "vision_model."
BLOCK_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TEXT_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
IMAGE_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # transformers' own spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
}
TRANSPOSED = ("text_projection", "visual.proj")
# transformers' names of activations: whether it is QuickGELU, and the argument of torch's GELU for it.
ACTIVATIONS: dict[str, tuple[bool, dict[str, str]]] = {
    "quick_gelu": (True, {}),
    "gelu": (False, {}),
    "gelu_new": (False, {"approximate": "tanh"}),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
}
USUAL_EPSILON = 1e-5
LEGACY_END = 2  # an eos_token_id in old configs; transformers then takes the highest id of each text


@dataclass(frozen=True)
class ClipConfig:
    """config.json: of both towers, or of one with that tower's keys at the top level."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class TowerConfig:
    """Settings that the shapes of a tower's tensors do not show, with transformers' defaults."""

    num_attention_heads: Annotated[int, Meta(ge=1)] | None = None
    eos_token_id: int | None = 49407
    layer_norm_eps: Annotated[float, Meta(gt=0)] = USUAL_EPSILON
    hidden_act: str = "quick_gelu"


def read_huggingface(folder: Path) -> Checkpoint:
    """Read a CLIP folder with both towers, or with one tower, saved with its projection as a text or vision model."""
    config = check_model_type(folder)
    weights = read_weights(folder)
    try:
        return convert(folder, config, weights)
    except (KeyError, ValueError, IndexError) as error:
        raise EncoderError(f"{folder} is an incomplete CLIP: {error} is missing or of another shape") from error


def check_model_type(folder: Path) -> dict[str, Any]:
    """Return config.json; raises EncoderError for models other than CLIP, which names similar ones of open_clip."""
    config = read_object(folder / "config.json")
    model_type = str(config.get("model_type"))
    if model_type in MODEL_TYPES:
        return config
    family = next((family for family in OPEN_CLIP_NAMES if model_type.startswith(family)), None)
    advice = (
        f"use open_clip's form of it, such as {OPEN_CLIP_NAMES[family]}"
        if family
        else "clip-retrieval models list names those of open_clip"
    )
    raise EncoderError(
        f"{folder} holds a model of type {model_type}; of transformers' models, only CLIP ({', '.join(MODEL_TYPES)}) "
        f"can be read: {advice}"
    )


def convert(folder: Path, config: Config, weights: Tensors) -> Checkpoint:
    tensors: Tensors = {}
    model_config: dict[str, Any] = {}
    image_size = 224  # placeholder: text models use no preprocessing
    check_projections(folder, weights)
    if "text_projection.weight" in weights:
        tensors |= rename(weights, name_text(count_blocks(weights, f"{TEXT}encoder.layers.")))
        model_config["text_cfg"] = text_config(tower_config(folder, config, "text_config"), tensors)
        model_config["embed_dim"] = tensors["text_projection"].shape[1]
    if "visual_projection.weight" in weights:
        tensors |= rename(weights, name_image(count_blocks(weights, f"{IMAGE}encoder.layers.")))
        model_config["vision_cfg"] = vision_config(tower_config(folder, config, "vision_config"), tensors)
        model_config["embed_dim"] = tensors["visual.proj"].shape[1]
        image_size = model_config["vision_cfg"]["image_size"]
    if "logit_scale" in weights:
        tensors["logit_scale"] = weights["logit_scale"]
    model_config["quick_gelu"] = apply_activations(folder, config, model_config)
    return Checkpoint(str(folder), "clip", model_config, tensors, read_preprocess(folder, image_size))


def tower_config(folder: Path, config: Config, key: str) -> TowerConfig:
    """Return a tower's part of config.json, which is all of it if the folder holds one tower."""
    path = folder / "config.json"
    nested = getattr(check_shape(config, ClipConfig, path, EncoderError), key)
    return check_shape(nested or config, TowerConfig, f"{path}: {key}" if nested else path, EncoderError)


def check_projections(folder: Path, weights: Tensors) -> None:
    """Refuse towers without projection: their vectors cannot be compared with anything."""
    if not {"text_projection.weight", "visual_projection.weight"} & weights.keys():
        raise EncoderError(
            f"{folder} has no projection into the space that texts and pictures share; "
            "save it as CLIPModel, CLIPTextModelWithProjection or CLIPVisionModelWithProjection"
        )


def name_text(layers: int) -> Names:
    return {ours: (theirs,) for theirs, ours in TEXT_NAMES.items()} | name_blocks(TEXT, "", layers)


def name_image(layers: int) -> Names:
    return {ours: (theirs,) for theirs, ours in IMAGE_NAMES.items()} | name_blocks(IMAGE, "visual.", layers)


def name_blocks(theirs: str, ours: str, layers: int) -> Names:
    """Return the names of a transformer's blocks; query, key and value are one matrix in open_clip."""
    names: Names = {}
    for i in range(layers):
        old, new = f"{theirs}encoder.layers.{i}.", f"{ours}transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            names[f"{new}attn.in_proj_{kind}"] = tuple(f"{old}self_attn.{letter}_proj.{kind}" for letter in "qkv")
            names |= {f"{new}{name}.{kind}": (f"{old}{part}.{kind}",) for part, name in BLOCK_PARTS.items()}
    return names


def rename(weights: Tensors, names: Names) -> Tensors:
    """Return the tensors under open_clip's names and in its shapes; only stacking copies."""
    tensors: Tensors = {}
    for ours, parts in names.items():
        array = np.concatenate([weights[part] for part in parts]) if len(parts) > 1 else weights[parts[0]]
        tensors[ours] = array.T if ours in TRANSPOSED else array
    return tensors


def text_config(config: TowerConfig, tensors: Tensors) -> dict[str, Any]:
    """Return open_clip's text_cfg: sizes from the shapes, the rest from the config or transformers' defaults."""
    vocab_size, width = tensors["token_embedding.weight"].shape
    end = config.eos_token_id
    by_id = end is not None and end != LEGACY_END and end < vocab_size - 1  # words were added after the end of text
    return {
        "context_length": tensors["positional_embedding"].shape[0],
        "vocab_size": vocab_size,
        "width": width,
        "heads": config.num_attention_heads or 8,
        "layers": count_blocks(tensors, "transformer.resblocks."),
        **({"pool_type": "eos", "eos_id": end} if by_id else {}),
        **shared_config(config, tensors["transformer.resblocks.0.mlp.c_fc.weight"]),
    }


def vision_config(config: TowerConfig, tensors: Tensors) -> dict[str, Any]:
    width, _, _, patch_size = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)  # without the class token
    return {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "head_width": width // (config.num_attention_heads or 12),
        "layers": count_blocks(tensors, "visual.transformer.resblocks."),
        **shared_config(config, tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
    }


def shared_config(config: TowerConfig, hidden_layer: NDArray[Any]) -> dict[str, Any]:
    """Return the settings of a tower that differ from open_clip's defaults, for either tower."""
    hidden, width = hidden_layer.shape
    epsilon = config.layer_norm_eps
    found: dict[str, Any] = {}
    if hidden != 4 * width:
        found["mlp_ratio"] = (hidden + 0.5) / width  # open_clip takes int(width * ratio)
    if epsilon != USUAL_EPSILON:
        found["norm_kwargs"] = {"eps": epsilon}
    return found


def apply_activations(folder: Path, config: Config, model_config: dict[str, Any]) -> bool:
    """Write each tower's activation into its configuration; return whether it is QuickGELU, which both must share."""
    quick: set[bool] = set()
    for ours, theirs in (("text_cfg", "text_config"), ("vision_cfg", "vision_config")):
        if ours not in model_config:
            continue
        name = tower_config(folder, config, theirs).hidden_act
        if name not in ACTIVATIONS:
            raise EncoderError(f"{folder} uses the activation {name}; known are {', '.join(ACTIVATIONS)}")
        is_quick, options = ACTIVATIONS[name]
        quick.add(is_quick)
        if options:
            model_config[ours]["act_kwargs"] = options
    if len(quick) > 1:
        raise EncoderError(f"{folder} uses QuickGELU in one tower and GELU in the other; open_clip cannot do that")
    return quick.pop()
