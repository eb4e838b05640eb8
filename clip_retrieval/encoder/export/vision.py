"""Vision transformers as ONNX graphs: uint8 pixels [n, s, s, 3] in, features [n, d] out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_retrieval.encoder.export.transformer import Layers, Pool
from clip_retrieval.encoder.preprocess import Preprocess

BLOCKS = "visual.transformer.resblocks"


def add_vision_transformer(layers: Layers, pixels: str, preprocess: Preprocess, config: Mapping[str, Any]) -> str:
    graph = layers.graph
    x = add_tokens(layers, pixels, preprocess)
    x = graph.add("Add", x, graph.constant("visual.positional_embedding", layers.array("visual.positional_embedding")))
    if "visual.ln_pre.weight" in layers.weights:
        x = layers.norm("visual.ln_pre", x)
    heads = config["width"] // config.get("head_width", 64)
    first = Pool(take=lambda tokens: graph.add("Slice", tokens, *(graph.integers(i) for i in (0, 1, 1))))
    x = layers.blocks(BLOCKS, x, [heads] * config["layers"], pool=first)
    feature = graph.add("Squeeze", layers.norm("visual.ln_post", x), graph.integers(1))
    return layers.multiply("visual.proj", feature, layers.array("visual.proj"))


def add_tokens(layers: Layers, pixels: str, preprocess: Preprocess) -> str:
    """Add the class token and the patches, [n, 1 + patches, width]."""
    graph = layers.graph
    patches = add_patches(layers, pixels, preprocess)
    token = layers.array("visual.class_embedding").reshape(1, 1, -1)
    count = graph.add("Shape", patches, start=0, end=1)
    shape = graph.add("Concat", count, graph.integers(1, token.size), axis=0)
    first = graph.add("Expand", graph.constant("visual.class_embedding", token), shape)
    return graph.add("Concat", first, patches, axis=1)


def add_patches(layers: Layers, pixels: str, preprocess: Preprocess) -> str:
    """Embed the patches: a convolution whose stride is its size is one matrix product. Returns [n, patches, width]."""
    graph = layers.graph
    kernel = layers.array("visual.conv1.weight")  # [width, 3, p, p]
    side = kernel.shape[-1]
    grid = preprocess.size // side
    cut = graph.add("Reshape", pixels, graph.integers(-1, grid, side, grid, side, 3))
    cut = graph.add("Transpose", cut, perm=[0, 1, 3, 2, 4, 5])
    cut = graph.add("Reshape", cut, graph.integers(-1, grid * grid, side * side * 3))
    scaled = add_scaling(layers, cut, preprocess, repeat=side * side)
    product = layers.multiply("visual.conv1.weight", scaled, kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)))
    if "visual.conv1.bias" in layers.weights:
        product = graph.add("Add", product, layers.weight("visual.conv1.bias"))
    return product


def add_scaling(layers: Layers, pixels: str, preprocess: Preprocess, *, repeat: int = 1) -> str:
    """Scale by mean and std; the last axis is the colors, `repeat` times.

    The kernel could hold the scale as well, but rounded weights have the smallest errors on values around zero.
    """
    graph = layers.graph
    mean, std = (np.tile(np.array(v, dtype=np.float64), repeat) for v in (preprocess.mean, preprocess.std))
    scaled = graph.add("Mul", graph.to_float(pixels), graph.constant("scale", (1 / (255 * std)).astype(np.float32)))
    return graph.add("Add", scaled, graph.constant("shift", (-mean / std).astype(np.float32)))
