"""Refusals, in one sentence that names the file: models that GGUF cannot express, and files that are not CLIP."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import quantize_gguf, read_gguf, write_gguf
from clip_retrieval.encoder.formats.gguf_file import GgufFile, Value, read_gguf_file, write_gguf_file
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

WORDS = [f"w{i}</w>" for i in range(50)]
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "text_cfg": {"context_length": 10, "vocab_size": 50, "width": 32, "heads": 1, "layers": 1},
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 32, "layers": 1},
}
PLAIN = Preprocess(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def make_checkpoint(**vision: Any) -> Checkpoint:
    config = {**CONFIG, "vision_cfg": CONFIG["vision_cfg"] | vision}
    tensors = {name: tensor.numpy() for name, tensor in open_clip.CLIP(**config).state_dict().items()}
    return Checkpoint("tiny.pt", "clip", config, tensors, PLAIN)


@pytest.fixture
def file(tmp_path: Path) -> GgufFile:
    write_gguf(make_checkpoint(), tmp_path / "good.gguf", WORDS, dtype="f32")
    return read_gguf_file(tmp_path / "good.gguf")


def refuse(path: Path, message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf_file(tmp_path / "llama.gguf", {"general.architecture": Value("string", "llama")}, {})
    refuse(tmp_path / "llama.gguf", "is a GGUF model of the architecture llama, not clip")


def test_a_model_without_towers_is_refused(tmp_path: Path) -> None:
    keys = {f"clip.has_{tower}_encoder": Value("bool", False) for tower in ("text", "vision")}
    write_gguf_file(tmp_path / "none.gguf", {"general.architecture": Value("string", "clip"), **keys}, {})
    refuse(tmp_path / "none.gguf", "holds neither a text nor an image encoder")


@pytest.mark.parametrize("key", ["clip.has_text_encoder", "clip.use_gelu", "clip.vision.image_std"])
def test_a_missing_key_is_named(tmp_path: Path, file: GgufFile, key: str) -> None:
    keys = {name: value for name, value in file.key_values.items() if name != key}
    write_gguf_file(tmp_path / "bad.gguf", keys, file.tensors)
    refuse(tmp_path / "bad.gguf", f"does not say {re.escape(key)}")


def test_a_missing_tensor_is_named(tmp_path: Path, file: GgufFile) -> None:
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != "v.post_ln.bias"}
    write_gguf_file(tmp_path / "bad.gguf", file.key_values, tensors)
    refuse(tmp_path / "bad.gguf", r"does not hold v\.post_ln\.bias")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip.vision.attention.head_count", Value("u32", 0)),
        ("clip.text.attention.head_count", Value("u32", 0)),
        ("clip.vision.image_mean", Value("f32", [0.5])),
        ("clip.text.embedding_length", Value("string", "wide")),
        ("clip.text.block_count", Value("string", "two")),
        ("clip.text.embedding_length", Value("u32", 0)),
    ],
)
def test_keys_that_make_no_model_are_refused(tmp_path: Path, file: GgufFile, key: str, value: Value) -> None:
    write_gguf_file(tmp_path / "bad.gguf", {**file.key_values, key: value}, file.tensors)
    refuse(tmp_path / "bad.gguf", "is broken: its keys make no model")


def test_more_blocks_than_there_are_tensors_are_refused_at_once(tmp_path: Path, file: GgufFile) -> None:
    keys = {**file.key_values, "clip.text.block_count": Value("u32", 2**32 - 1)}
    write_gguf_file(tmp_path / "bad.gguf", keys, file.tensors)
    refuse(tmp_path / "bad.gguf", r"does not hold t\.blk\.1\.")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (make_checkpoint(pool_type="avg"), "has pool_type, for which"),
        (make_checkpoint(ls_init_value=0.1), r"has visual\.transformer\.resblocks\.0\.ls_1\.gamma, for which"),
        (replace(make_checkpoint(), preprocess=replace(PLAIN, resize_mode="squash")), "another way to resize"),
    ],
)
def test_what_clip_cpp_would_run_as_another_model_is_not_written(
    tmp_path: Path, checkpoint: Checkpoint, message: str
) -> None:
    with pytest.raises(EncoderError, match=rf"tiny\.pt .*{message}|tiny\.pt {message}"):
        write_gguf(checkpoint, tmp_path / "model.gguf", WORDS)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_model_is_not_written(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    tensors = {name: array for name, array in checkpoint.tensors.items() if name != "visual.ln_pre.bias"}
    with pytest.raises(EncoderError, match=r"does not hold visual\.ln_pre\.bias"):
        write_gguf(replace(checkpoint, tensors=tensors), tmp_path / "model.gguf", WORDS)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"tiny\.pt has 50 tokens, its vocabulary 49"):
        write_gguf(make_checkpoint(), tmp_path / "model.gguf", WORDS[1:])


def test_a_quantized_file_is_not_quantized_again(tmp_path: Path, file: GgufFile) -> None:
    quantize_gguf(file.path, tmp_path / "q5.gguf", "q5_1")
    with pytest.raises(EncoderError, match=r"q5\.gguf is quantized already \(q5_1\)"):
        quantize_gguf(tmp_path / "q5.gguf", tmp_path / "q4.gguf", "q4_0")


def test_rows_that_are_no_whole_blocks_are_not_quantized(tmp_path: Path, file: GgufFile) -> None:
    tensor = replace(file.tensors["visual_projection.weight"], shape=(2, 33), load=lambda: np.zeros(264, np.uint8))
    write_gguf_file(tmp_path / "odd.gguf", file.key_values, {**file.tensors, "visual_projection.weight": tensor})
    with pytest.raises(EncoderError, match=r"odd\.gguf cannot be quantized: visual_projection\.weight has rows of 33"):
        quantize_gguf(tmp_path / "odd.gguf", tmp_path / "q4.gguf", "q4_0")
    assert not (tmp_path / "q4.gguf").exists()
