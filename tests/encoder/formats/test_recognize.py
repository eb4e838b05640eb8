"""A path is recognized by what is in it, not by its name."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_retrieval.encoder.formats.recognize import read_checkpoint, recognize
from clip_retrieval.errors import EncoderError

MIXER = {"visual.transformer.mixBlocks.0.layerNorm1.weight": torch.ones(2)}
OPENAI = {"visual.proj": torch.ones(2, 2), "logit_scale": torch.tensor(4.6)}
TRANSFORMERS = {"text_model.final_layer_norm.weight": torch.ones(2)}
SIZES = {"input_resolution": torch.tensor(224)}


class Script(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        (MIXER, "mixer"),
        ({f"module.{name}": tensor for name, tensor in MIXER.items()}, "mixer"),
        (OPENAI, "state_dict"),
        (OPENAI | SIZES, "openai"),
        ({"visual.trunk.x": torch.ones(2)}, "state_dict"),
    ],
)
@pytest.mark.parametrize("name", ["weights", "weights.pt", "model.safetensors"])
def test_weights_are_told_apart_by_their_names_in_either_container(
    tmp_path: Path, tensors: dict[str, Tensor], kind: str, name: str
) -> None:
    torch.save(tensors, tmp_path / name)
    assert recognize(tmp_path / name) == kind
    save_file(tensors, tmp_path / name)
    assert recognize(tmp_path / name) == kind


def test_a_script_archive_is_openais(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # torch.jit is deprecated; the files it wrote are not
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Script()), tmp_path / "model.bin")
    assert recognize(tmp_path / "model.bin") == "openai"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"open_clip_config.json": {}, "config.json": {"model_type": "clip"}}, "open_clip"),
        ({"config.json": {"model_type": "clip"}}, "huggingface"),
        ({"config.json": {"model_type": "siglip"}}, "huggingface"),
        ({"visual.onnx": {}}, "onnx"),
        ({"textual.onnx": {}, "config.json": {"model_type": "clip"}}, "onnx"),
    ],
)
def test_folders_are_told_apart_by_their_files(tmp_path: Path, files: dict[str, object], kind: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert recognize(tmp_path) == kind


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_folder_of_accelerate_is_recognized_by_its_weights(tmp_path: Path, name: str) -> None:
    torch.save(MIXER, tmp_path / name) if name.endswith("bin") else save_file(MIXER, tmp_path / name)
    assert recognize(tmp_path) == "mixer"


def test_weights_of_transformers_need_their_configuration(tmp_path: Path) -> None:
    save_file(TRANSFORMERS, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"weights of transformers, but the config\.json"):
        recognize(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert recognize(tmp_path / "model.safetensors") == "huggingface"
    with pytest.raises(EncoderError, match="holds a model of type siglip"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_gguf_and_onnx_files_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "any.bin").write_bytes(b"GGUF" + struct.pack("<I", 3))
    (tmp_path / "visual.onnx").write_bytes(b"\x08\x08")
    assert recognize(tmp_path / "any.bin") == "gguf"
    assert recognize(tmp_path / "visual.onnx") == "onnx"


def test_what_is_nothing_known_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<html>")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "cut").write_bytes(b"PK\x03\x04 and no more")
    save_file({"weight": torch.ones(2)}, tmp_path / "other")
    for name, message in {
        "page": "looked for GGUF, a torch archive",
        "empty": "looked for GGUF, a torch archive",
        "pointer": "is a Git LFS pointer, not the file itself; run git lfs pull",
        "cut": "is cut off or broken",
        "other": "none with the names of a CLIP",
        "missing": "there is no file or folder",
        "": "looked for open_clip_config.json",
    }.items():
        with pytest.raises(EncoderError, match=message) as caught:
            recognize(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_in_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(EncoderError, match=rf"{name} is a Git LFS pointer, not the file itself; run git lfs pull"):
        recognize(tmp_path)


def test_models_that_are_no_checkpoint_say_how_to_open_them(tmp_path: Path) -> None:
    torch.save(OPENAI, tmp_path / "model.pt")
    with pytest.raises(EncoderError, match=r"use open_clip:ARCH/.*model\.pt"):
        read_checkpoint(tmp_path / "model.pt")
    (tmp_path / "visual.onnx").touch()
    with pytest.raises(EncoderError, match="use onnx:"):
        read_checkpoint(tmp_path)
    (tmp_path / "open_clip_config.json").touch()
    with pytest.raises(EncoderError, match="use open_clip:local-dir:"):
        read_checkpoint(tmp_path)


def test_the_readers_need_no_torch() -> None:
    modules = ["recognize", "openai_pt", "huggingface", "mixer", "safetensors", "gguf"]
    imports = ", ".join(f"clip_retrieval.encoder.formats.{name}" for name in modules)
    code = f"import sys, {imports}; sys.exit(bool({{'torch', 'open_clip', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["model.pt", "x.gguf", "x.safetensors", "x.weights"])
def test_a_device_in_place_of_a_model_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(os.devnull)  # a pipe would hang where this fails
    with pytest.raises(EncoderError, match=f"{name} is a pipe, a socket or a device, not a file"):
        recognize(tmp_path / name)
