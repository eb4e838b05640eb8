"""CLIP's modified ResNets as ONNX graphs: three stem convolutions, pooling before strides, attention at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_retrieval.encoder.export.transformer import Layers
from clip_retrieval.encoder.export.vision import add_scaling
from clip_retrieval.encoder.preprocess import Preprocess

EPSILON = 1e-5  # BatchNorm's epsilon


def add_resnet(layers: Layers, pixels: str, preprocess: Preprocess, config: Mapping[str, Any]) -> str:
    scaled = add_scaling(layers, pixels, preprocess)
    x = layers.graph.add("Transpose", scaled, perm=[0, 3, 1, 2])
    for i in (1, 2, 3):
        x = add_convolution(layers, f"visual.conv{i}", f"visual.bn{i}", x, stride=2 if i == 1 else 1)
        x = layers.graph.add("Relu", x)
    x = add_pooling(layers, x, 2)
    for stage, depth in enumerate(config["layers"]):
        for i in range(depth):
            x = add_bottleneck(layers, f"visual.layer{stage + 1}.{i}", x, stride=2 if stage and not i else 1)
    heads = config["width"] * 32 // config.get("head_width", 64)
    return add_attention_pooling(layers, x, heads)


def add_convolution(layers: Layers, name: str, norm: str, x: str, *, stride: int = 1) -> str:
    kernel = layers.array(f"{name}.weight")
    side = kernel.shape[-1]
    shape: dict[str, Any] = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [side // 2] * 4}
    x = layers.graph.add("Conv", x, layers.weight(f"{name}.weight"), **shape)
    parts = (layers.weight(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var"))
    return layers.graph.add("BatchNormalization", x, *parts, epsilon=EPSILON)


def add_pooling(layers: Layers, x: str, side: int) -> str:
    return layers.graph.add("AveragePool", x, kernel_shape=[side] * 2, strides=[side] * 2) if side > 1 else x


def add_bottleneck(layers: Layers, name: str, x: str, *, stride: int) -> str:
    """Add 1x1, 3x3 and 1x1 convolutions next to the shortcut; a stride is a pooling before the last one."""
    graph = layers.graph
    inner = x
    for i in (1, 2):
        inner = graph.add("Relu", add_convolution(layers, f"{name}.conv{i}", f"{name}.bn{i}", inner))
    inner = add_convolution(layers, f"{name}.conv3", f"{name}.bn3", add_pooling(layers, inner, stride))
    if f"{name}.downsample.0.weight" in layers.weights:
        x = add_convolution(layers, f"{name}.downsample.0", f"{name}.downsample.1", add_pooling(layers, x, stride))
    return graph.add("Relu", graph.add("Add", inner, x))


def add_attention_pooling(layers: Layers, x: str, heads: int) -> str:
    """Attend from the mean of all positions, itself one of them, to all: [n, channels, h, w] to [n, d]."""
    graph, name = layers.graph, "visual.attnpool"
    positions = layers.array(f"{name}.positional_embedding")
    width = positions.shape[1]
    tokens = graph.add("Transpose", graph.add("Reshape", x, graph.integers(0, 0, -1)), perm=[0, 2, 1])
    mean = graph.add("ReduceMean", tokens, graph.integers(1), keepdims=1)
    tokens = graph.add("Concat", mean, tokens, axis=1)
    tokens = graph.add("Add", tokens, graph.constant(f"{name}.positional_embedding", positions))
    first = graph.add("Slice", tokens, *(graph.integers(i) for i in (0, 1, 1)))
    query = graph.add("Mul", layers.linear(f"{name}.q_proj", first), graph.number((width // heads) ** -0.5))
    key, value = (layers.linear(f"{name}.{part}_proj", tokens) for part in "kv")
    mixed = layers.mix(query, key, value, shape=(heads, width // heads), mask=None)
    return graph.add("Squeeze", layers.linear(f"{name}.c_proj", mixed), graph.integers(1))
