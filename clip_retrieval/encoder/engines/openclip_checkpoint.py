"""An open_clip model in memory to a Checkpoint, if a Checkpoint can describe its towers."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
from numpy.typing import NDArray
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from torch import nn

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.preprocess import Preprocess

USUAL_EPSILON = 1e-5
Config = dict[str, Any]


def describe_model(model: nn.Module, preprocess: Preprocess, source: str) -> Checkpoint | None:
    """Return the model's weights and configuration, as its modules have them; None if a part is of another kind."""
    visual, text = getattr(model, "visual", None), getattr(model, "text", model)
    described_text, described_image = describe_text(text), describe_image(visual)
    if described_text is None or described_image is None:
        return None
    (text_cfg, text_act), (vision_cfg, vision_act) = described_text, described_image
    activations = {act for act in (text_act, vision_act) if act is not None}
    if len({is_quick for is_quick, _ in activations}) > 1:
        return None
    for config, act in ((text_cfg, text_act), (vision_cfg, vision_act)):
        if act is not None and act[1] != "none":
            config["act_kwargs"] = {"approximate": act[1]}
    model_config = {
        "embed_dim": read_dimension(text),
        "quick_gelu": any(is_quick for is_quick, _ in activations),
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }
    return Checkpoint(source, "clip", model_config, read_tensors(model), preprocess)


def read_tensors(model: nn.Module) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix("text."): value.detach().float().numpy()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def read_dimension(text: Any) -> int:
    return int(text.text_projection.shape[1])


def describe_text(text: Any) -> tuple[Config, tuple[bool, str] | None] | None:
    """Return text_cfg and the activation of a causal text tower that takes its feature from the end of text."""
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    is_known = isinstance(text, open_clip.CLIP | TextTransformer) and pool in ("argmax", "eos")
    if not is_known or text.attn_mask is None or not isinstance(text.text_projection, nn.Parameter):
        return None
    blocks = describe_blocks(text.transformer, text.ln_final)
    if blocks is None or getattr(text, "cls_emb", None) is not None:
        return None
    config, activation = blocks
    config |= {"context_length": text.positional_embedding.shape[0], "vocab_size": text.token_embedding.num_embeddings}
    config["heads"] = text.transformer.resblocks[0].attn.num_heads
    if pool == "eos":
        config |= {"pool_type": "eos", "eos_id": getattr(text, "text_eos_id", getattr(text, "eos_id", None))}
    return config, activation


def describe_image(visual: Any) -> tuple[Config, tuple[bool, str] | None] | None:
    if isinstance(visual, ModifiedResNet):
        stages = [len(getattr(visual, f"layer{i}")) for i in range(1, 5)]
        width = visual.layer1[0].conv1.out_channels
        config = {"image_size": first(visual.image_size), "layers": stages, "width": width}
        return config | {"head_width": width * 32 // visual.attnpool.num_heads}, None
    is_plain = (
        type(visual) is VisionTransformer
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and visual.proj is not None
    )
    blocks = describe_blocks(visual.transformer, visual.ln_post) if is_plain else None
    if blocks is None:
        return None
    config, activation = blocks
    heads = visual.transformer.resblocks[0].attn.num_heads
    config |= {"image_size": first(visual.image_size), "patch_size": first(visual.patch_size)}
    return config | {"head_width": config["width"] // heads}, activation


def describe_blocks(transformer: Any, norm: Any) -> tuple[Config, tuple[bool, str]] | None:
    """Return the configuration that the blocks of both towers have in common; None if a block has anything else."""
    names = {name for name, _ in transformer.resblocks[0].named_parameters()}
    if names != BLOCK_PARAMETERS or not isinstance(norm, nn.LayerNorm):
        return None
    block = transformer.resblocks[0]
    hidden, width = block.mlp.c_fc.weight.shape
    config: Config = {"width": width, "layers": len(transformer.resblocks)}
    if hidden != 4 * width:
        config["mlp_ratio"] = (hidden + 0.5) / width  # open_clip takes int(width * ratio)
    if not np.isclose(norm.eps, USUAL_EPSILON):
        config["norm_kwargs"] = {"eps": norm.eps}
    activation = block.mlp.gelu
    if isinstance(activation, QuickGELU):
        return config, (True, "none")
    return (config, (False, activation.approximate)) if isinstance(activation, nn.GELU) else None


BLOCK_PARAMETERS = {
    f"{part}.{kind}"
    for part in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
} | {"attn.in_proj_weight", "attn.in_proj_bias"}


def first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)
