"""Linear and MLP heads over embeddings, from npz, safetensors and torch files, read without running their code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.config import Activation, Output
from clip_retrieval.curate.embedded import Floats
from clip_retrieval.encoder.formats.openai_pt import read_torch_zip
from clip_retrieval.encoder.formats.safetensors import looks_like_safetensors, read_safetensors, strip_wrappers
from clip_retrieval.errors import DAMAGED_NPY, ConfigError, SourceError, one_line
from clip_retrieval.tools.scores import sigmoid

BIASES = {"weight": "bias", "coef_": "intercept_", "coef": "intercept", "w": "b"}  # by the name of the weights
WEIGHTS = re.compile(rf"(.*?)({'|'.join(BIASES)})", re.IGNORECASE)
PLAIN_NAME = re.compile(r"[^\w]+")
LARGEST = 2 << 30  # bytes of an npz file: heads have only some thousand numbers


@dataclass(frozen=True, eq=False)
class Head:
    """Layers, applied one after the other: weights [out, in] and biases [out]."""

    path: str
    layers: list[tuple[Floats, Floats]]
    activation: Activation
    output: Output

    @property
    def dim(self) -> int:
        return self.layers[0][0].shape[1]

    @property
    def columns(self) -> list[str]:
        """The names of its scores: the name of the file, with numbers if there are several."""
        stem = PLAIN_NAME.sub("_", Path(self.path).stem).strip("_").lower() or "score"
        count = len(self.layers[-1][1])
        return [stem] if count == 1 else [f"{stem}_{number}" for number in range(count)]

    def score(self, rows: Floats) -> Floats:
        """Return the scores [n, outputs] of unit rows."""
        for number, (weights, biases) in enumerate(self.layers):
            rows = rows @ weights.T + biases
            if number < len(self.layers) - 1:
                rows = activate(rows, self.activation)
        return sigmoid(rows) if self.output == "sigmoid" else rows


def activate(rows: Floats, activation: Activation) -> Floats:
    if activation == "relu":
        return np.maximum(rows, 0)
    if activation == "gelu":  # the tanh form, within 0.0005 of the exact function
        wide = 0.5 * rows * (1 + np.tanh(np.sqrt(2 / np.pi) * (rows + 0.044715 * rows**3)))
        gelu: Floats = wide.astype(np.float32)
        return gelu
    return rows


def read_head(path: str, dim: int, activation: Activation, output: Output) -> Head:
    """Read a head for rows of a dimension; raises a ClipRetrievalError if the file is not a head."""
    layers = as_layers(path, read_arrays(Path(path)))
    head = Head(path, layers, activation, output)
    if head.dim != dim:
        raise ConfigError(
            f"{path} is a head for {head.dim} dimensions, and the embeddings have {dim}; use a head for their model"
        )
    return head


def read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    if not path.is_file():
        raise SourceError(f"{path} is not there; name the file of a head: npz, safetensors or torch")
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip and any(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist()):
            if path.stat().st_size > LARGEST:
                raise SourceError(f"{path} is too large for a head")
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (OSError, *DAMAGED_NPY, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} cannot be read as a head: {one_line(error)}") from error
    if looks_like_safetensors(path):
        return strip_wrappers(read_safetensors(path))
    if path.suffix.lower() == ".npz":
        raise SourceError(f"{path} is not an npz file with arrays; write it with numpy.savez")
    return strip_wrappers(read_torch_zip(path))


def as_layers(path: str, arrays: Mapping[str, NDArray[Any]]) -> list[tuple[Floats, Floats]]:
    """Return the layers in the order of their names' numbers; raises SourceError for anything but linear layers."""
    left = dict(arrays)
    layers = []
    for name in sorted(left, key=by_numbers):
        match = WEIGHTS.fullmatch(name)
        if match is None:
            continue
        weights = np.atleast_2d(np.asarray(left[name], np.float32))
        bias = f"{match[1]}{BIASES[match[2].lower()]}"
        found = next((other for other in left if other.lower() == bias.lower()), None)
        biases = np.zeros(len(weights), np.float32) if found is None else np.asarray(left[found], np.float32).ravel()
        layers.append((weights, biases))
        left = {other: array for other, array in left.items() if other not in (name, found)}
    if not layers or left:
        what = f"it holds {one_line(next(iter(left)))}" if left else "it holds no weights"
        raise SourceError(f"{path} is not a head of linear layers (weight and bias of each): {what}")
    for (weights, biases), (following, _) in zip(layers, [*layers[1:], (None, None)], strict=True):
        is_chained = following is None or following.shape[1] == len(weights)
        if weights.ndim != 2 or len(biases) != len(weights) or not is_chained:
            raise SourceError(f"{path} is not a head of linear layers: the shapes of its layers do not fit together")
        if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
            raise SourceError(f"{path} holds numbers that are not finite")
    return layers


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Sort layers.10 after layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
