"""Files of clip.cpp from before GGUF: read like the GGUF file of the same weights."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import write_gguf
from clip_retrieval.encoder.formats.gguf_blocks import CODES, BlockType, quantize
from clip_retrieval.encoder.formats.huggingface_writer import name_loaders, name_tensors
from clip_retrieval.encoder.formats.recognize import read_checkpoint, recognize
from clip_retrieval.encoder.tokenizer import clip_vocabulary
from clip_retrieval.errors import EncoderError

MakeCheckpoint = Callable[..., Checkpoint]


def write_ggml(checkpoint: Checkpoint, path: Path, matrix_type: BlockType) -> None:
    """Write what clip.cpp's converter and quantizer of June 2023 write."""
    vision, text = checkpoint.model_config["vision_cfg"], checkpoint.model_config["text_cfg"]
    width, heads = text["width"], text["heads"]
    sizes = [49408, 77, width, 4 * width, 32, heads, 2, 64, 32, vision["width"], 4 * vision["width"], 32, heads, 2]
    vocabulary = [f"word {i}".encode() for i in range(49408)]
    parts = [b"lmgg", struct.pack("<16i", *sizes, 0, CODES[matrix_type]), struct.pack("<i", len(vocabulary))]
    parts += [struct.pack("<i", len(word)) + word for word in vocabulary]
    for name, load in name_loaders(checkpoint, name_tensors(checkpoint, ("text", "image"))).items():
        if name != "logit_scale":
            parts.append(pack_tensor(name, np.squeeze(load()), matrix_type))
    path.write_bytes(b"".join(parts))


def pack_tensor(name: str, array: NDArray[Any], matrix_type: BlockType) -> bytes:
    is_matrix = name.endswith(".weight") and array.ndim > 1
    kind: BlockType = (matrix_type if array.ndim == 2 else "f16") if is_matrix else "f32"
    head = struct.pack("<3i", array.ndim, len(name), CODES[kind]) + struct.pack(f"<{array.ndim}i", *array.shape[::-1])
    return head + name.encode() + quantize(np.ascontiguousarray(array), kind).tobytes()


@pytest.mark.parametrize("matrix_type", ["f16", "f32", "q4_0"])
def test_a_legacy_file_is_the_model_of_the_gguf_file_of_its_weights(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, matrix_type: BlockType
) -> None:
    checkpoint = make_checkpoint()
    write_ggml(checkpoint, tmp_path / "ggml-model.bin", matrix_type)
    write_gguf(checkpoint, tmp_path / "model.gguf", clip_vocabulary(), dtype="f16" if matrix_type == "f16" else "f32")
    found, expected = (read_checkpoint(tmp_path / name) for name in ("ggml-model.bin", "model.gguf"))
    assert recognize(tmp_path / "ggml-model.bin") == "ggml"
    assert (found.model_config, found.preprocess) == (expected.model_config, expected.preprocess)
    assert found.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors.keys() - {"logit_scale"}:
        tolerance = 0.6 if matrix_type == "q4_0" else 0
        np.testing.assert_allclose(found.tensors[name], expected.tensors[name], atol=tolerance)


def test_cut_and_broken_files_are_refused(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    write_ggml(make_checkpoint(), tmp_path / "whole.bin", "f16")
    data = (tmp_path / "whole.bin").read_bytes()
    for changed in (data[:40], data[:-9], data[:4] + b"\xff" * 4 + data[8:], data[: len(data) // 2]):
        (tmp_path / "bad.bin").write_bytes(changed)
        with pytest.raises(EncoderError, match=r"bad\.bin is"):
            read_checkpoint(tmp_path / "bad.bin")
