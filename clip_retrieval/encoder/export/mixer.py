"""Mixer CLIP's towers as ONNX graphs; formats/mixer.py says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_retrieval.encoder.export.text import add_ends, take_rows
from clip_retrieval.encoder.export.transformer import Layers
from clip_retrieval.encoder.export.vision import add_tokens
from clip_retrieval.encoder.formats.mixer import IMAGE_BLOCKS, TEXT_BLOCKS
from clip_retrieval.encoder.preprocess import Preprocess


def add_image_mixer(layers: Layers, pixels: str, preprocess: Preprocess, config: Mapping[str, Any]) -> str:
    graph = layers.graph
    x = layers.norm("visual.ln_pre", add_tokens(layers, pixels, preprocess))
    x = add_blocks(layers, x, IMAGE_BLOCKS, config["vision_layers"])
    first = graph.add("Slice", x, *(graph.integers(i) for i in (0, 1, 1)))
    feature = graph.add("Squeeze", layers.norm("visual.ln_post", first), graph.integers(1))
    return layers.multiply("visual.proj", feature, layers.array("visual.proj"))


def add_text_mixer(layers: Layers, tokens: str, config: Mapping[str, Any]) -> str:
    graph = layers.graph
    x = graph.rows("token_embedding.weight", layers.array("token_embedding.weight"), tokens)
    x = add_blocks(layers, x, TEXT_BLOCKS, config["text_layers"])
    feature = layers.norm("ln_final", take_rows(graph, x, add_ends(graph, tokens, config)))
    return layers.multiply("text_projection", feature, layers.array("text_projection"))


def add_blocks(layers: Layers, x: str, prefix: str, count: int) -> str:
    """Mix over the tokens, then over the channels, `count` times."""
    graph = layers.graph
    for block in (f"{prefix}{i}." for i in range(count)):
        turned = graph.add("Transpose", layers.norm(f"{block}layerNorm1", x), perm=[0, 2, 1])
        mixed = add_two_layers(layers, f"{block}token_mix_seq.lin1", f"{block}token_mix_seq.lin2", turned)
        x = graph.add("Add", x, graph.add("Transpose", mixed, perm=[0, 2, 1]))
        normed = layers.norm(f"{block}layerNorm2", x)
        mixed = add_two_layers(layers, f"{block}channel_mix_seq.lin3", f"{block}channel_mix_seq.lin4", normed)
        x = graph.add("Add", x, mixed)
    return x


def add_two_layers(layers: Layers, first: str, second: str, x: str) -> str:
    return layers.linear(second, layers.quick_gelu(layers.linear(first, x)))
