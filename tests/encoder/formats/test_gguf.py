"""GGUF files of CLIP: written, read back, run by open_clip and, if it is installed, by clip.cpp itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import Towers, quantize_gguf, read_gguf, write_gguf
from clip_retrieval.encoder.formats.gguf_blocks import Quantized, dequantize, quantize
from clip_retrieval.encoder.formats.gguf_file import Value, read_gguf_file, write_gguf_file
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.encoder.formats.recognize import read_checkpoint
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

TEXT = {"context_length": 10, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 3}
CONFIG: dict[str, Any] = {"embed_dim": 32, "quick_gelu": True, "text_cfg": TEXT, "vision_cfg": VISION}
WORDS = [f"w{i}</w>" for i in range(50)]
KERNEL = "visual.conv1.weight"
TYPES: tuple[Quantized, ...] = get_args(Quantized)
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[48, *range(3, 9), 49, 0, 0], [48, *range(20, 28), 49]])


def make_model(config: dict[str, Any] = CONFIG) -> open_clip.CLIP:
    """Return a model in which every tensor is random, biases and norms too; the kernel fits float16."""
    model = open_clip.CLIP(**config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim:
            noise = torch.randn(tensor.shape, generator=generator)
            near_one = "ln_" in name and name.endswith("weight")
            tensor.copy_(
                1 + noise * 0.1 if near_one else noise * (tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.1)
            )
    model.visual.conv1.weight.data = model.visual.conv1.weight.data.half().float()
    model.logit_scale.data.fill_(3.5)
    return model


def make_checkpoint(config: dict[str, Any] = CONFIG) -> Checkpoint:
    tensors = {name: tensor.numpy() for name, tensor in make_model(config).state_dict().items()}
    preprocess = Preprocess(config["vision_cfg"]["image_size"], (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    return Checkpoint("a/tiny.pt", "clip", config, tensors, preprocess)


def load(checkpoint: Checkpoint) -> open_clip.CLIP:
    model = open_clip.CLIP(**checkpoint.model_config).eval()
    model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in checkpoint.tensors.items()})
    return model


@torch.inference_mode()
def embed(model: open_clip.CLIP) -> Tensor:
    return torch.cat([model.encode_image(PIXELS, normalize=True), model.encode_text(TOKENS, normalize=True)])


def cosines(one: Tensor, two: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one.double(), two.double())


def cosine(one: NDArray[Any], two: NDArray[Any]) -> float:
    a, b = one.astype(np.float64).ravel(), two.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_a_float32_file_gives_back_every_tensor_and_the_whole_configuration(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    write_gguf(checkpoint, tmp_path / "model.gguf", WORDS, dtype="f32")
    found = read_checkpoint(tmp_path / "model.gguf")
    assert found.model_config == checkpoint.model_config
    assert found.preprocess == checkpoint.preprocess
    assert sorted(found.tensors) == sorted(checkpoint.tensors)
    for name, array in checkpoint.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array, err_msg=name)
    assert len(found.tensors) == len(checkpoint.tensors)


def test_the_preprocessing_of_openai_comes_back_with_all_its_digits(tmp_path: Path) -> None:
    checkpoint = replace(make_checkpoint(), preprocess=Preprocess(32, MEAN, STD))
    write_gguf(checkpoint, tmp_path / "model.gguf", WORDS)
    assert read_gguf(tmp_path / "model.gguf").preprocess == checkpoint.preprocess


def test_reading_maps_floats_and_copies_none(tmp_path: Path) -> None:
    write_gguf(make_checkpoint(), tmp_path / "model.gguf", WORDS)
    tensors = read_gguf(tmp_path / "model.gguf").tensors
    assert isinstance(tensors["token_embedding.weight"], np.memmap)
    assert isinstance(tensors["text_projection"], np.memmap)


def test_the_patch_kernel_is_float16_in_a_float32_file_as_clip_cpp_wants_it(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    kernel = checkpoint.tensors[KERNEL] * np.float32(1.0001)
    checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, KERNEL: kernel})
    write_gguf(checkpoint, tmp_path / "model.gguf", WORDS, dtype="f32")
    np.testing.assert_array_equal(read_gguf(tmp_path / "model.gguf").tensors[KERNEL], kernel.astype(np.float16))


def test_a_float16_file_rounds_matrices_and_leaves_biases_and_norms(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    write_gguf(checkpoint, tmp_path / "model.gguf", WORDS)
    found = read_gguf(tmp_path / "model.gguf").tensors
    for name, array in checkpoint.tensors.items():
        assert cosine(found[name], array) > 0.9999
        assert found[name].dtype == (np.float16 if array.ndim > 1 else np.float32)
        assert array.ndim > 1 or (found[name] == array).all()


@pytest.mark.parametrize(
    ("text", "vision", "quick_gelu"),
    [
        ({}, {}, True),
        ({}, {}, False),
        ({"heads": 4}, {"head_width": 16}, True),
        ({"mlp_ratio": 96.5 / 64}, {"mlp_ratio": 160.5 / 128}, True),
        ({"norm_kwargs": {"eps": 1e-2}}, {"norm_kwargs": {"eps": 1e-6}}, False),
    ],
)
def test_open_clip_gives_the_embeddings_of_the_original(
    tmp_path: Path, text: dict[str, Any], vision: dict[str, Any], quick_gelu: bool
) -> None:
    config = {**CONFIG, "text_cfg": TEXT | text, "vision_cfg": VISION | vision, "quick_gelu": quick_gelu}
    checkpoint = make_checkpoint(config)
    write_gguf(checkpoint, tmp_path / "model.gguf", WORDS, dtype="f32")
    found = read_gguf(tmp_path / "model.gguf")
    assert found.model_config == config
    assert torch.equal(embed(load(found)), embed(make_model(config)))


def test_the_names_and_keys_are_those_of_clip_cpp(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    write_gguf(checkpoint, tmp_path / "model.gguf", WORDS, dtype="f32")
    file = read_gguf_file(tmp_path / "model.gguf")
    assert len(file.tensors) == 5 + 2 * 16 + 8 + 3 * 16
    query, key, value = (file.tensors[f"t.blk.1.attn_{letter}.weight"].array() for letter in "qkv")
    stacked = np.concatenate([query, key, value])
    np.testing.assert_array_equal(stacked, checkpoint.tensors["transformer.resblocks.1.attn.in_proj_weight"])
    assert file.tensors["v.blk.0.ffn_down.weight"].shape == (512, 128)  # the widening layer
    assert file.tensors["visual_projection.weight"].shape == (32, 128)
    assert file.get("clip.vision.attention.head_count") == 4
    assert file.get("clip.use_gelu") is False
    assert file.get("general.description") == "two-tower CLIP model"
    assert file.get("tokenizer.ggml.tokens") == WORDS
    assert file.key_values["clip.logit_scale"] == Value("f32", 3.5)


def test_a_file_without_a_logit_scale_has_that_of_openai(tmp_path: Path) -> None:
    write_gguf(make_checkpoint(), tmp_path / "ours.gguf", WORDS)
    file = read_gguf_file(tmp_path / "ours.gguf")
    keys = {key: value for key, value in file.key_values.items() if key != "clip.logit_scale"}
    write_gguf_file(tmp_path / "theirs.gguf", keys, file.tensors, 2)
    scale = read_gguf(tmp_path / "theirs.gguf").tensors["logit_scale"]
    assert scale.shape == ()
    assert np.exp(scale) == pytest.approx(100)


@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_file_may_hold_one_tower(tmp_path: Path, tower: Towers) -> None:
    checkpoint, path = make_checkpoint(), tmp_path / "one.gguf"
    write_gguf(checkpoint, path, WORDS if tower == "text" else [], dtype="f32", towers=tower)
    found = read_gguf(path)
    assert (found.has_text, found.has_image) == (tower == "text", tower == "image")
    part = "text_cfg" if tower == "text" else "vision_cfg"
    assert found.model_config == {key: CONFIG[key] for key in ("embed_dim", "quick_gelu", part)}
    for name, array in found.tensors.items():
        np.testing.assert_array_equal(array, checkpoint.tensors[name])
    again = tmp_path / "again.gguf"
    write_gguf(found, again, WORDS if tower == "text" else [], dtype="f32")
    assert read_gguf_file(again).tensors.keys() == read_gguf_file(path).tensors.keys()
    with pytest.raises(EncoderError, match=f"one.gguf has no {'text' if tower == 'image' else 'image'} encoder"):
        write_gguf(found, again, WORDS, towers="text" if tower == "image" else "image")


@pytest.mark.parametrize("block_type", TYPES)
def test_quantizing_touches_matrices_only_and_leaves_the_rest_byte_for_byte(
    tmp_path: Path, block_type: Quantized
) -> None:
    write_gguf(make_checkpoint(), tmp_path / "f32.gguf", WORDS, dtype="f32")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "small.gguf", block_type)
    before, after = read_gguf_file(tmp_path / "f32.gguf"), read_gguf_file(tmp_path / "small.gguf")
    for name, tensor in before.tensors.items():
        is_matrix = name.endswith(".weight") and len(tensor.shape) == 2
        wanted = quantize(tensor.array(), block_type) if is_matrix else tensor.load()
        assert after.tensors[name].block_type == (block_type if is_matrix else tensor.block_type)
        assert after.tensors[name].load().tobytes() == wanted.tobytes(), name
    assert list(after.tensors) == list(before.tensors)
    assert after.get("general.quantization_version") == 2


def test_a_quantized_file_opens_with_its_weights_made_float32(tmp_path: Path) -> None:
    write_gguf(make_checkpoint(), tmp_path / "f32.gguf", WORDS, dtype="f32")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q8.gguf", "q8_0")
    found = read_gguf(tmp_path / "q8.gguf")
    projection = make_checkpoint().tensors["visual.proj"].T
    wanted = dequantize(quantize(projection, "q8_0"), "q8_0", projection.shape).T
    np.testing.assert_array_equal(found.tensors["visual.proj"], wanted)
    assert cosines(embed(load(found)), embed(make_model())).min() > 0.999
