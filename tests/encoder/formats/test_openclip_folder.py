from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from clip_retrieval.encoder.formats.checkpoint import Checkpoint, Family
from clip_retrieval.encoder.formats.gguf import Towers
from clip_retrieval.encoder.formats.openclip_folder import write_openclip
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError, StorageError

VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
PREPROCESS = Preprocess(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "longest", 7)
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["a photo of a dog", "fire " * 40, "日本語"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"quick_gelu": False},
    {"text_cfg": TEXT | {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 2.5}, "quick_gelu": False},
    {"vision_cfg": VISION | {"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 1.3, "head_width": 24}},
    {"vision_cfg": VISION | {"act_kwargs": {"approximate": "tanh"}}, "quick_gelu": False},
    {"text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407}},
    {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}},
    {"vision_cfg": VISION | {"no_ln_pre": True, "ls_init_value": 0.1}},
]


def random_model(config: Mapping[str, Any]) -> open_clip.CLIP:
    """Return a model without any initial value: norms, biases and running means are random too."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(0.2 * (torch.rand_like(value) if name.endswith("running_var") else torch.randn_like(value)))
    return model


def to_checkpoint(model: nn.Module, config: Mapping[str, Any]) -> Checkpoint:
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    return Checkpoint("source.pt", "clip", config, tensors, PREPROCESS)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return to_checkpoint(random_model(CONFIG), CONFIG)


def assert_close(found: Tensor, wanted: Tensor, bound: float = 1e-6) -> None:
    assert (found - wanted).abs().max() / wanted.abs().max() <= bound


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_open_clip_and_we_get_the_embeddings_of_the_original(tmp_path: Path, variant: int) -> None:
    config = CONFIG | VARIANTS[variant]
    original = random_model(config)
    write_openclip(to_checkpoint(original, config), tmp_path / "out")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(TEXTS)
    with torch.inference_mode():
        image, text = original.encode_image(PIXELS, normalize=True), original.encode_text(tokens, normalize=True)
        assert_close(model.encode_image(PIXELS, normalize=True), image)
        assert_close(model.encode_text(tokens, normalize=True), text)
    encoder = load_encoder(str(tmp_path / "out"))
    assert encoder.encode_texts(TEXTS) == pytest.approx(text.numpy(), abs=1e-6)
    assert encoder.info.preprocess == PREPROCESS
    assert encoder.info.logit_scale == pytest.approx(float(original.logit_scale.detach().exp()))


def test_the_weights_file_is_what_the_safetensors_library_reads(tmp_path: Path, checkpoint: Checkpoint) -> None:
    strided = {name: np.asfortranarray(array) for name, array in checkpoint.tensors.items()}  # the same, stored askew
    whole = strided | {"visual.count": np.array(3, dtype=np.int64)}
    vision = VISION | {"no_ln_pre": True}  # then only open_clip checks tensors
    write_openclip(replace(checkpoint, tensors=whole, model_config=CONFIG | {"vision_cfg": vision}), tmp_path / "out")
    path = tmp_path / "out" / "open_clip_model.safetensors"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(whole)
        for name, array in whole.items():
            np.testing.assert_array_equal(file.get_tensor(name), array, err_msg=name)
            assert file.get_tensor(name).dtype == array.dtype


def test_f16_makes_halves_of_matrices_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_openclip(checkpoint, tmp_path / "out", dtype="f16")
    with safe_open(tmp_path / "out" / "open_clip_model.safetensors", "np") as file:
        for name, array in checkpoint.tensors.items():
            wanted = array.astype(np.float16 if array.ndim > 1 else np.float32)
            assert file.get_tensor(name).dtype == wanted.dtype, name
            np.testing.assert_array_equal(file.get_tensor(name), wanted, err_msg=name)
    assert open_clip.create_model(f"local-dir:{tmp_path / 'out'}").logit_scale.dtype == torch.float32


def test_every_number_is_aligned_to_its_width(tmp_path: Path, checkpoint: Checkpoint) -> None:
    odd = {**checkpoint.tensors, "visual.a": np.ones((3, 3), np.float32), "visual.b": np.array(3, dtype=np.int64)}
    config = CONFIG | {"vision_cfg": VISION | {"no_ln_pre": True}}
    write_openclip(replace(checkpoint, tensors=odd, model_config=config), tmp_path / "out", dtype="f16")
    content = (tmp_path / "out" / "open_clip_model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    widths = {"F16": 2, "F32": 4, "I64": 8}
    starts = [(entry["data_offsets"][0], widths[entry["dtype"]]) for entry in header.values() if "dtype" in entry]
    assert {width for _, width in starts} == {2, 4, 8}
    assert all(start % width == 0 for start, width in starts)


def test_numbers_too_large_for_f16_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    large = checkpoint.tensors["visual.proj"] * 1e6
    tensors = {**checkpoint.tensors, "visual.proj": large}
    with pytest.raises(EncoderError, match=r"visual\.proj holds numbers that are too large for f16"):
        write_openclip(replace(checkpoint, tensors=tensors), tmp_path / "out", dtype="f16")
    assert not list(tmp_path.iterdir())
    write_openclip(replace(checkpoint, tensors=tensors), tmp_path / "out")


def test_halves_become_floats_where_f32_is_asked(tmp_path: Path, checkpoint: Checkpoint) -> None:
    halves = {name: array.astype(np.float16) for name, array in checkpoint.tensors.items()}
    write_openclip(replace(checkpoint, tensors=halves), tmp_path / "out")
    with safe_open(tmp_path / "out" / "open_clip_model.safetensors", "np") as file:
        assert {str(file.get_tensor(name).dtype) for name in halves} == {"float32"}
        np.testing.assert_array_equal(file.get_tensor("visual.proj"), halves["visual.proj"])


def drop(checkpoint: Checkpoint, *starts: str) -> Checkpoint:
    return replace(checkpoint, tensors={k: v for k, v in checkpoint.tensors.items() if not k.startswith(starts)})


@pytest.mark.parametrize(
    ("without", "towers", "message"),
    [
        (["visual."], "both", r"so the text tower of source\.pt alone .* --to onnx, gguf or hf"),
        (["t", "positional", "ln_"], "both", r"so the image tower of source\.pt alone"),
        ([], "text", r"so the text tower of source\.pt alone"),
        ([], "image", r"so the image tower of source\.pt alone"),
        (["logit_scale"], "both", "does not hold logit_scale"),
        (["transformer.resblocks.1.mlp.c_fc.bias"], "both", "does not hold transformer.resblocks.1.mlp.c_fc.bias"),
        (["visual.transformer.resblocks.1"], "both", "does not hold visual.transformer.resblocks.1"),
    ],
)
def test_half_a_model_is_refused(
    tmp_path: Path, checkpoint: Checkpoint, without: list[str], towers: Towers, message: str
) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        write_openclip(drop(checkpoint, *without), tmp_path / "out", towers=towers)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    mixer: Family = "mixer"
    with pytest.raises(EncoderError, match=r"is a Mixer CLIP, .* --to onnx"):
        write_openclip(replace(checkpoint, family=mixer), tmp_path / "out")
    nearest = replace(PREPROCESS, interpolation="nearest")
    with pytest.raises(EncoderError, match="to the nearest pixel"):
        write_openclip(replace(checkpoint, preprocess=nearest), tmp_path / "out")
    extra = {**checkpoint.tensors, "visual.more": np.zeros(2, np.float32)}
    with pytest.raises(EncoderError, match=r"holds visual\.more, which"):
        write_openclip(replace(checkpoint, tensors=extra), tmp_path / "out")


# Whole or absent.


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    for name in ("out", "file"):
        with pytest.raises(StorageError, match=f"{name} exists already .* name another place, or remove it") as caught:
            write_openclip(checkpoint, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "out", "mine.txt"]


def test_an_empty_folder_and_a_missing_parent_are_taken(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "out").mkdir()
    for folder in (tmp_path / "out", tmp_path / "a" / "b"):
        write_openclip(checkpoint, folder)
        assert {path.name for path in folder.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith("_")] == []


class Stops(Mapping[str, NDArray[Any]]):
    """Tensors, the last of which cannot be read a second time, when it is written."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors, self.reads = tensors, 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        self.reads += name == "visual.proj"
        if self.reads > 1:
            raise KeyboardInterrupt
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_a_run_that_is_interrupted_leaves_nothing(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_openclip(replace(checkpoint, tensors=Stops(checkpoint.tensors)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
import clip_retrieval.encoder.formats.openclip_folder as writer
def die(path, value):
    assert (path.parent / "open_clip_model.safetensors").stat().st_size > 1e6
    os.kill(os.getpid(), signal.SIGKILL)
writer.write_json = die
from clip_retrieval.encoder.formats.openai_pt import read_openai
writer.write_openclip(read_openai(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_run_that_is_killed_leaves_nothing_under_the_name_and_the_next_one_cleans_up(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()}, tmp_path / "model.pt")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "model.pt", tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "_partial").exists()
    write_openclip(checkpoint, tmp_path / "out")
    assert not (tmp_path / "_partial").exists()
    assert json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"] == CONFIG
