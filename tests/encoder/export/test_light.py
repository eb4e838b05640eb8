"""Checkpoints as ONNX folders without torch: the numbers and the fingerprint of the torch engine, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.onnx import OnnxEncoder
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.export.light import write_light
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import Towers, write_gguf
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.tokenizer import clip_vocabulary
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError

MakeCheckpoint = Callable[..., Checkpoint]

TEXTS = ["a photo of a dog", "fire", "", "a bird on a wire in the rain"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def write(checkpoint: Checkpoint, path: Path, towers: Towers = "both") -> str:
    if path.suffix == ".gguf":
        write_gguf(checkpoint, path, clip_vocabulary(), dtype="f32", towers=towers)
    else:  # OpenAI's layout
        tensors = {name: np.array(array, order="C") for name, array in checkpoint.tensors.items()}
        save_file({**tensors, "input_resolution": np.array(64)}, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_a_query_gets_the_numbers_and_the_fingerprint_of_torch(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, suffix: str
) -> None:
    uri = write(make_checkpoint(width=128 if suffix == ".gguf" else 64), tmp_path / f"model{suffix}")
    config = EncoderConfig(clip_model=uri, device="cpu", precision="fp32")
    light, torch = load_encoder(config), open_engine(parse_uri(uri), config)
    assert isinstance(light, OnnxEncoder)
    assert not isinstance(torch, OnnxEncoder)
    assert replace(light.info, precision="fp32") == torch.info
    np.testing.assert_allclose(light.encode_images(PIXELS), torch.encode_images(PIXELS), atol=1e-5)
    np.testing.assert_allclose(light.encode_texts(TEXTS), torch.encode_texts(TEXTS), atol=1e-5)


def test_a_checkpoint_is_opened_in_a_process_that_never_imports_torch(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    uri = write(make_checkpoint(), tmp_path / "model.gguf")
    code = (
        f"from clip_retrieval import load_encoder\nprint(load_encoder({uri!r}).encode_texts(['a dog']).shape)\n"
        "import sys; print([name for name in ('torch', 'open_clip') if name in sys.modules])"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n") == ["(1, 32)", "[]", ""]


@pytest.mark.parametrize("towers", ["text", "image"])
def test_a_file_of_one_tower_has_one_fingerprint_on_every_engine(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, towers: Towers
) -> None:
    uri = write(make_checkpoint(), tmp_path / "model.gguf", towers)
    config = EncoderConfig(clip_model=uri, device="cpu")
    found = [open_engine(parse_uri(uri), config).info.fingerprint for _ in range(2)]
    assert {load_encoder(config).info.fingerprint, *found} == {found[0]}
    assert load_encoder(config).info.towers == (towers,)


def test_weights_that_the_configuration_has_no_use_for_are_refused_and_nothing_is_kept(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = make_checkpoint()
    more = {**checkpoint.tensors, "visual.transformer.resblocks.0.ls_1.gamma": np.ones(64, np.float32)}
    with pytest.raises(EncoderError, match=r"holds visual\.transformer\.resblocks\.0\.ls_1\.gamma, which its"):
        write_light(replace(checkpoint, tensors=more), tmp_path / "out", "tiny")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_shape_are_refused_by_the_sentence_of_torch(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = make_checkpoint()
    wrong = {**checkpoint.tensors, "ln_final.bias": np.ones(7, np.float32)}
    uri = write(replace(checkpoint, tensors=wrong), tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match="does not fit the model that it describes"):
        load_encoder(EncoderConfig(clip_model=uri, device="cpu"))
