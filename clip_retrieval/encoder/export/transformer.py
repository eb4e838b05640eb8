"""The layers that CLIP's towers share, as ONNX nodes; weights under open_clip's names. x is [n, tokens, width]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.export.graph import Graph

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

USUAL_EPSILON = 1e-5


@dataclass(frozen=True)
class Pool:
    """Where a tower's feature is taken from: the last block computes nothing else."""

    take: Callable[[str], str]  # [n, tokens, width] to [n, 1, width]
    mask: str | None = None  # added to the scores of the tokens taken, [n, 1, 1, tokens]


@dataclass(frozen=True)
class Layers:
    """Adds layers to a graph with the weights of one checkpoint."""

    graph: Graph
    weights: Mapping[str, NDArray[Any]]
    activation: Activation = "quick_gelu"
    epsilon: float = USUAL_EPSILON

    def array(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.weights[name], dtype=np.float32)

    def weight(self, name: str) -> str:
        return self.graph.weight(name, self.array(name))

    def norm(self, name: str, x: str) -> str:
        parts = (self.weight(f"{name}.{kind}") for kind in ("weight", "bias"))
        return self.graph.add("LayerNormalization", x, *parts, epsilon=self.epsilon)

    def multiply(self, name: str, x: str, matrix: NDArray[np.float32]) -> str:
        """Multiply by a matrix [in, out]."""
        return self.graph.add("MatMul", x, self.graph.weight(name, matrix))

    def linear(self, name: str, x: str) -> str:
        """Multiply by a weight [out, in] and add the bias."""
        product = self.multiply(f"{name}.weight", x, self.array(f"{name}.weight").T)
        return self.graph.add("Add", product, self.weight(f"{name}.bias"))

    def activate(self, x: str) -> str:
        if self.activation == "quick_gelu":
            return self.quick_gelu(x)
        return self.graph.add("Gelu", x, approximate="tanh" if self.activation == "gelu_tanh" else "none")

    def quick_gelu(self, x: str) -> str:
        gate = self.graph.add("Sigmoid", self.graph.add("Mul", x, self.graph.number(1.702)))
        return self.graph.add("Mul", x, gate)

    def blocks(self, name: str, x: str, heads: list[int], *, pool: Pool, mask: str | None = None) -> str:
        """Add the residual attention blocks, `heads` of each; the mask is added to the scores. Returns [n, 1, width].

        The last block computes queries, and what follows them, only for the token that the feature is taken from:
        the same result for a twelfth less work in a tower of twelve.
        """
        for i, count in enumerate(heads):
            last = i == len(heads) - 1
            block = f"{name}.{i}"
            normed = self.norm(f"{block}.ln_1", x)
            asking = pool.take(normed) if last else normed
            attended = self.attention(f"{block}.attn", asking, normed, heads=count, mask=pool.mask if last else mask)
            x = self.graph.add("Add", pool.take(x) if last else x, attended)
            hidden = self.activate(self.linear(f"{block}.mlp.c_fc", self.norm(f"{block}.ln_2", x)))
            x = self.graph.add("Add", x, self.linear(f"{block}.mlp.c_proj", hidden))
        return x

    def attention(self, name: str, asking: str, x: str, *, heads: int, mask: str | None) -> str:
        """Add attention of `asking` [n, m, width] over x; the scale of the scores is part of the query's weights."""
        matrix, bias = self.array(f"{name}.in_proj_weight").T.copy(), self.array(f"{name}.in_proj_bias").copy()
        width = len(matrix)
        scale = np.float32((width // heads) ** -0.5)
        matrix[:, :width] *= scale
        bias[:width] *= scale
        # Three products, because a runtime would copy the result of a single one into three parts.
        query, key, value = (
            self.project(f"{name}.{part}_proj", given, matrix[:, i * width :][:, :width], bias[i * width :][:width])
            for i, (part, given) in enumerate((("q", asking), ("k", x), ("v", x)))
        )
        mixed = self.mix(query, key, value, shape=(heads, width // heads), mask=mask)
        return self.linear(f"{name}.out_proj", mixed)

    def project(self, name: str, x: str, matrix: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        return self.graph.add(
            "Add", self.multiply(f"{name}_weight", x, matrix), self.graph.constant(f"{name}_bias", bias)
        )

    def mix(self, query: str, key: str, value: str, *, shape: tuple[int, int], mask: str | None) -> str:
        """Mix the values by the softmax of the scores; shape is heads and width of each."""
        graph, (heads, width) = self.graph, shape
        query, key, value = (
            graph.add("Reshape", part, graph.integers(0, 0, heads, width)) for part in (query, key, value)
        )
        query, value = (graph.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, value))
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 2, 3, 1]))
        if mask is not None:
            scores = graph.add("Add", scores, mask)
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.add("Reshape", mixed, graph.integers(0, 0, heads * width))
