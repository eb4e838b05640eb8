"""Mixer CLIP (the CLIP-mixer project): its checkpoints, and its two towers in plain numpy.

A block mixes first over the tokens, then over the channels, each with two linear layers and QuickGELU. Neither tower
has positional embeddings or attention. The text tower mixes over all tokens, so padding counts: a text is padded with 0
to its full length, never cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD, read_weights
from clip_retrieval.encoder.formats.safetensors import count_blocks
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

Floats = NDArray[np.float32]

EPSILON = 1e-5  # LayerNorm, everywhere
TEXT_BLOCKS, IMAGE_BLOCKS = "transformer.mixBlocks.", "visual.transformer.mixBlocks."


def read_mixer(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the folder that accelerate saved; its shapes determine the architecture."""
    tensors = read_weights(path)
    if not any(".mixBlocks." in name for name in tensors):
        raise EncoderError(f"{path} is not a Mixer CLIP: none of its tensors is named mixBlocks")
    try:
        config = infer_config(tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise EncoderError(f"{path} is an incomplete Mixer CLIP: {error} is missing or of another shape") from error
    return Checkpoint(str(path), "mixer", config, tensors, Preprocess(config["image_size"], MEAN, STD))


def infer_config(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    vision_width, _, _, patch_size = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors[f"{IMAGE_BLOCKS}0.token_mix_seq.lin1.weight"].shape[1] - 1)  # without the class token
    vocab_size, text_width = tensors["token_embedding.weight"].shape
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "vision_width": vision_width,
        "vision_layers": count_blocks(tensors, IMAGE_BLOCKS),
        "text_width": text_width,
        "text_layers": count_blocks(tensors, TEXT_BLOCKS),
        "context_length": tensors[f"{TEXT_BLOCKS}0.token_mix_seq.lin1.weight"].shape[1],
        "vocab_size": vocab_size,
        "quick_gelu": True,
    }


class MixerTowers:
    """The forward pass of both towers, in float32; embeddings are not normalized."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.model_config
        self.tensors = {name: np.asarray(array, dtype=np.float32) for name, array in checkpoint.tensors.items()}

    def encode_image(self, pixels: Floats) -> Floats:
        """Return [n, d] for pixels [n, 3, s, s] that are already scaled by mean and std."""
        self.check_shape("pixels", pixels, (3, self.config["image_size"], self.config["image_size"]))
        patches = self.embed_patches(np.asarray(pixels, dtype=np.float32))
        width = patches.shape[2]
        first = np.broadcast_to(self.tensors["visual.class_embedding"], (len(patches), 1, width))
        x = self.norm("visual.ln_pre", np.concatenate([first, patches], axis=1))
        x = self.mix(x, IMAGE_BLOCKS, self.config["vision_layers"])
        return self.norm("visual.ln_post", x[:, 0]) @ self.tensors["visual.proj"]

    def encode_text(self, tokens: NDArray[np.integer[Any]]) -> Floats:
        """Return [n, d] for token ids [n, context], padded with 0 to the full context, since padding is mixed in."""
        self.check_shape("tokens", tokens, (self.config["context_length"],))
        x = self.mix(self.tensors["token_embedding.weight"][tokens], TEXT_BLOCKS, self.config["text_layers"])
        ends = x[np.arange(len(tokens)), tokens.argmax(axis=1)]  # the end of text has the highest id
        return self.norm("ln_final", ends) @ self.tensors["text_projection"]

    def check_shape(self, what: str, rows: NDArray[Any], wanted: tuple[int, ...]) -> None:
        if rows.shape[1:] != wanted:
            raise EncoderError(f"this Mixer CLIP takes {what} of shape {wanted} a row, not {rows.shape[1:]}")

    def embed_patches(self, pixels: Floats) -> Floats:
        """Return [n, patches, width]: a convolution whose stride is its size is one matrix product."""
        kernel = self.tensors["visual.conv1.weight"]
        side = kernel.shape[-1]
        grid = pixels.shape[-1] // side
        cut = pixels.reshape(len(pixels), 3, grid, side, grid, side).transpose(0, 2, 4, 1, 3, 5)
        return cut.reshape(len(pixels), grid * grid, 3 * side * side) @ kernel.reshape(len(kernel), -1).T

    def mix(self, x: Floats, prefix: str, layers: int) -> Floats:
        for block in (f"{prefix}{i}." for i in range(layers)):
            tokens_last = self.norm(f"{block}layerNorm1", x).transpose(0, 2, 1)
            x = x + self.two_layers(f"{block}token_mix_seq.lin1", f"{block}token_mix_seq.lin2", tokens_last).swapaxes(
                1, 2
            )
            channels = self.norm(f"{block}layerNorm2", x)
            x = x + self.two_layers(f"{block}channel_mix_seq.lin3", f"{block}channel_mix_seq.lin4", channels)
        return x

    def two_layers(self, first: str, second: str, x: Floats) -> Floats:
        return self.linear(second, quick_gelu(self.linear(first, x)))

    def linear(self, name: str, x: Floats) -> Floats:
        found: Floats = x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]
        return found

    def norm(self, name: str, x: Floats) -> Floats:
        centered = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.mean(centered * centered, axis=-1, keepdims=True) + np.float32(EPSILON))
        found: Floats = centered / scale * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
        return found


def quick_gelu(x: Floats) -> Floats:
    """Return x * sigmoid(1.702 x), written with tanh, which cannot overflow."""
    found: Floats = x * (np.float32(0.5) * (1 + np.tanh(np.float32(0.851) * x)))
    return found
