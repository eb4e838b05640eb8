"""Causal text transformers as ONNX graphs: token ids [n, t] in, features [n, d] out; t may be less than the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from clip_retrieval.encoder.export.graph import Graph
from clip_retrieval.encoder.export.transformer import Layers, Pool

BLOCKS = "transformer.resblocks"


def add_text_transformer(layers: Layers, tokens: str, config: Mapping[str, Any]) -> str:
    graph = layers.graph
    positions = layers.array("positional_embedding")
    length = graph.add("Shape", tokens, start=1, end=2)
    x = graph.rows("token_embedding.weight", layers.array("token_embedding.weight"), tokens)
    x = graph.add("Add", x, add_start(graph, graph.constant("positional_embedding", positions), length, (0,)))
    mask = add_start(graph, graph.constant("mask", causal_mask(len(positions))), length, (0, 1))
    ends = add_ends(graph, tokens, config)
    pool = Pool(
        take=lambda x: graph.add("Unsqueeze", take_rows(graph, x, ends), graph.integers(1)),
        mask=graph.add("Unsqueeze", graph.add("Gather", mask, ends), graph.integers(1, 2)),
    )
    x = layers.blocks(BLOCKS, x, [config.get("heads", 8)] * config["layers"], pool=pool, mask=mask)
    feature = graph.add("Squeeze", layers.norm("ln_final", x), graph.integers(1))
    return layers.multiply("text_projection", feature, layers.array("text_projection"))


def causal_mask(length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.triu(np.full((length, length), -np.inf, dtype=np.float32), k=1)


def add_start(graph: Graph, x: str, length: str, axes: tuple[int, ...]) -> str:
    """Cut a table to the length of the texts."""
    for axis in axes:
        x = graph.add("Slice", x, graph.integers(0), length, graph.integers(axis))
    return x


def add_ends(graph: Graph, tokens: str, config: Mapping[str, Any]) -> str:
    """Return where the feature is taken from, [n]: the end of text, by its id or, without one, the highest id."""
    found = tokens
    if config.get("pool_type") == "eos":
        end = graph.constant("end_of_text", np.array(config["eos_id"], dtype=np.int32))
        found = graph.add("Cast", graph.add("Equal", tokens, end), to=TensorProto.INT32)
    return graph.add("ArgMax", found, axis=1, keepdims=0)


def take_rows(graph: Graph, x: str, positions: str) -> str:
    """Take one token of each text: [n, t, width] to [n, width]."""
    return graph.add("GatherND", x, graph.add("Unsqueeze", positions, graph.integers(1)), batch_dims=1)
