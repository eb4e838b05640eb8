"""A checkpoint to an ONNX folder without torch: built from its weights, tried out, and only then put into place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.onnx import OnnxEncoder, open_onnx
from clip_retrieval.encoder.export.towers import write_towers
from clip_retrieval.encoder.formats.checkpoint import NO_WEIGHTS, Checkpoint
from clip_retrieval.encoder.formats.onnx_folder import OnnxFolder, TokenizerSpec, write_about, write_vocabulary
from clip_retrieval.encoder.formats.onnx_sums import write_sums
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError
from clip_retrieval.storage import made_whole


class Read(Mapping[str, NDArray[Any]]):
    """Tensors that remember which of them were read."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors, self.names = tensors, set[str]()

    def __getitem__(self, name: str) -> NDArray[Any]:
        self.names.add(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def unread(self) -> list[str]:
        """Return the weights that no graph has read."""
        return sorted(name for name in self.tensors.keys() - self.names if not name.endswith(NO_WEIGHTS))


def write_light(checkpoint: Checkpoint, out: Path, source: str, vocabulary: frozenset[str] | None = None) -> None:
    """Write the graphs of a checkpoint that `is_buildable`, and the words that it was trained on, if they are few.

    Raises EncoderError, and leaves nothing, if the weights do not fit the configuration, or have more tensors than it.
    """
    tensors = Read(checkpoint.tensors)
    with made_whole(out) as staged:
        staged.mkdir()
        write_towers(dataclasses.replace(checkpoint, tensors=tensors), staged, checkpoint.towers, "f32")
        if tensors.unread():
            raise EncoderError(
                f"{checkpoint.source} holds {tensors.unread()[0]}, which its configuration has no use for"
            )
        about = OnnxFolder(
            source=source,
            fingerprint=checkpoint.fingerprint(),
            dimension=int(checkpoint.model_config["embed_dim"]),
            towers=checkpoint.towers,
            preprocess=checkpoint.preprocess,
            tokenizer=TokenizerSpec("clip", checkpoint.context_length, is_cut=checkpoint.family == "clip"),
            logit_scale=checkpoint.logit_scale,
        )
        write_about(staged, about)
        write_vocabulary(staged, vocabulary)
        try_out(staged)
        write_sums(staged)


def try_out(folder: Path) -> None:
    """Encode one picture and one text: weights of wrong shapes fail here."""
    name = ModelName(str(folder), "onnx", str(folder), "onnxruntime")
    config = EncoderConfig(clip_model=name.uri, device="cpu", precision="fp32")
    encoder: OnnxEncoder = open_onnx(name, config, "once")
    side = encoder.info.preprocess.size
    if "image" in encoder.info.towers:
        encoder.encode_images(np.zeros((1, side, side, 3), dtype=np.uint8))
    if "text" in encoder.info.towers:
        encoder.encode_texts(["a"])
