"""CLIP folders of transformers: the embeddings of transformers, or of formulas written here if it is missing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from numpy.typing import NDArray
from open_clip.model import _build_text_tower, _build_vision_tower
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.huggingface import read_huggingface
from clip_retrieval.errors import EncoderError

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "hidden_act": "quick_gelu",
}
TEXT |= {"num_attention_heads": 2, "max_position_embeddings": 20, "projection_dim": 24, "eos_token_id": 98}
TEXT |= {"layer_norm_eps": 1e-5, "bos_token_id": 97, "pad_token_id": 98}
VISION = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "hidden_act": "quick_gelu"}
VISION |= {"num_attention_heads": 3, "image_size": 32, "patch_size": 8, "projection_dim": 24, "layer_norm_eps": 1e-5}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[97, *range(3, 9), 98, *[98] * 12], [97, *range(20, 38), 98]])
VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    ({"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}),
    ({"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-3}),
    ({"num_attention_heads": 4}, {"num_attention_heads": 2}),
    ({"intermediate_size": 70}, {"intermediate_size": 101}),
    ({"eos_token_id": 2}, {}),
    ({"vocab_size": 105}, {}),
]


def to_tensors(checkpoint: Checkpoint, prefix: str = "") -> dict[str, Tensor]:
    tensors = checkpoint.tensors.items()
    return {name.removeprefix(prefix): torch.tensor(np.array(array)) for name, array in tensors}


@torch.inference_mode()
def embed_image(checkpoint: Checkpoint) -> Tensor:
    config = checkpoint.model_config
    tower = _build_vision_tower(config["embed_dim"], config["vision_cfg"], config["quick_gelu"]).eval()
    own = {name: tensor for name, tensor in to_tensors(checkpoint, "visual.").items() if name in tower.state_dict()}
    tower.load_state_dict(own)
    found: Tensor = tower(PIXELS)
    return found


@torch.inference_mode()
def embed_text(checkpoint: Checkpoint, tokens: Tensor = TOKENS) -> Tensor:
    config = checkpoint.model_config
    tower = _build_text_tower(config["embed_dim"], config["text_cfg"], config["quick_gelu"]).eval()
    own = {name: tensor for name, tensor in to_tensors(checkpoint).items() if name in tower.state_dict()}
    tower.load_state_dict(own)
    found: Tensor = tower(tokens)
    return found


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() / wanted.abs().max() <= 1e-5


def randomize(tensors: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and tensor.ndim:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise * 0.2 + (1 if "norm" in name and name.endswith("weight") else 0))


# Against transformers itself, if it is installed.


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_a_folder_gives_the_embeddings_of_transformers(tmp_path: Path, variant: int) -> None:
    text, vision = VARIANTS[variant]
    config = transformers.CLIPConfig(text_config=TEXT | text, vision_config=VISION | vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    randomize(model.state_dict())
    model.save_pretrained(tmp_path)
    checkpoint = read_huggingface(tmp_path)
    both = open_clip.CLIP(**checkpoint.model_config).eval()
    both.load_state_dict(to_tensors(checkpoint))
    with torch.inference_mode():
        wanted = model(input_ids=TOKENS, pixel_values=PIXELS)
        assert_close(both.encode_image(PIXELS, normalize=True), wanted.image_embeds)
        assert_close(both.encode_text(TOKENS, normalize=True), wanted.text_embeds)
        assert both.logit_scale == model.logit_scale


def test_a_text_model_and_a_vision_model_give_the_embeddings_of_transformers(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    text = transformers.CLIPTextModelWithProjection(config.text_config).eval()
    vision = transformers.CLIPVisionModelWithProjection(config.vision_config).eval()
    for name, model in (("text", text), ("vision", vision)):
        randomize(model.state_dict())
        model.save_pretrained(tmp_path / name)
    with torch.inference_mode():
        wanted_text, wanted_image = text(input_ids=TOKENS).text_embeds, vision(pixel_values=PIXELS).image_embeds
    assert_close(embed_text(read_huggingface(tmp_path / "text")), wanted_text)
    assert_close(embed_image(read_huggingface(tmp_path / "vision")), wanted_image)


# Without transformers: open_clip's own towers, written in the layout of transformers by hand.


@pytest.fixture(scope="module")
def original() -> nn.Module:
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
    text = {"context_length": 20, "vocab_size": 99, "width": 32, "heads": 2, "layers": 2}
    model: nn.Module = open_clip.CLIP(24, vision, text, quick_gelu=True).eval()
    randomize(model.state_dict())
    return model


RENAMES = (  # in this order
    ("visual.transformer.resblocks", "vision_model.encoder.layers"),
    ("transformer.resblocks", "text_model.encoder.layers"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.ln_post", "vision_model.post_layernorm"),
    ("ln_final", "text_model.final_layer_norm"),
    ("visual.conv1", "vision_model.embeddings.patch_embedding"),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("text_projection", "text_projection.weight"),
    ("visual.proj", "visual_projection.weight"),
)


def to_layout(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights as transformers names and shapes them, with the position_ids of its old versions."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        old = "text_model.embeddings.position_embedding.weight" if name == "positional_embedding" else name
        for ours, theirs in RENAMES:
            old = old.replace(ours, theirs) if theirs not in old else old
        if "in_proj_" in old:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {old.replace("attn.in_proj_", f"self_attn.{part}_proj."): third.clone() for part, third in parts}
        else:
            state[old] = tensor.T.contiguous() if old.endswith("projection.weight") else tensor.clone()
    return state | {"text_model.embeddings.position_ids": torch.arange(20).unsqueeze(0)}


CONFIG = {"model_type": "clip", "text_config": TEXT, "vision_config": VISION, "projection_dim": 24}


@pytest.fixture
def folder(tmp_path: Path, original: nn.Module) -> Path:
    save_file(to_layout(original), tmp_path / "model.safetensors")
    return rewrite(tmp_path, CONFIG)


def rewrite(folder: Path, config: object, name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


def test_a_folder_in_its_layout_gives_the_embeddings_of_the_original(folder: Path, original: Any) -> None:
    checkpoint = read_huggingface(folder)
    model = open_clip.CLIP(**checkpoint.model_config).eval()
    model.load_state_dict(to_tensors(checkpoint))
    with torch.inference_mode():
        assert_close(model.encode_image(PIXELS), original.encode_image(PIXELS))
        assert_close(model.encode_text(TOKENS), original.encode_text(TOKENS))


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "sharded bin", "sharded safetensors"])
def test_weights_are_the_same_however_they_are_stored(folder: Path, original: nn.Module, layout: str) -> None:
    other = folder / "other"
    other.mkdir()
    rewrite(other, CONFIG)
    state = to_layout(original)
    is_safe = layout.endswith("safetensors")
    names = {key: f"{'ab'[i % 2]}.{layout[8:]}" for i, key in enumerate(state)} if "sharded" in layout else {}
    for shard in sorted(set(names.values())) or [layout]:
        part = {key: tensor for key, tensor in state.items() if names.get(key, layout) == shard}
        (save_file if is_safe else torch.save)(part, other / shard)
    if names:
        index = "model.safetensors.index.json" if is_safe else "pytorch_model.bin.index.json"
        rewrite(other, {"weight_map": names}, index)
    wanted, found = read_huggingface(folder), read_huggingface(other)
    assert found.model_config == wanted.model_config
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, array in wanted.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array, err_msg=name)


def test_folders_with_one_tower_hold_one_tower(folder: Path, original: Any) -> None:
    state = to_layout(original)
    save_file({k: v for k, v in state.items() if k.startswith("text")}, folder / "model.safetensors")
    text = read_huggingface(rewrite(folder, {"model_type": "clip_text_model", **TEXT}))
    assert (text.has_text, text.has_image, "vision_cfg" in text.model_config) == (True, False, False)
    assert_close(embed_text(text), original.encode_text(TOKENS))
    save_file({k: v for k, v in state.items() if k.startswith("vis")}, folder / "model.safetensors")
    image = read_huggingface(rewrite(folder, {"model_type": "clip_vision_model", **VISION}))
    assert (image.has_text, image.has_image, "text_cfg" in image.model_config) == (False, True, False)
    assert_close(embed_image(image), original.encode_image(PIXELS))


def test_words_behind_the_end_of_text_do_not_move_the_pooled_row(folder: Path, original: Any) -> None:
    state = to_layout(original)
    name = "text_model.embeddings.token_embedding.weight"
    state[name] = torch.cat([state[name], state[name][3:9]])
    save_file(state, folder / "model.safetensors")
    checkpoint = read_huggingface(folder)
    assert checkpoint.model_config["text_cfg"]["pool_type"] == "eos"
    with_new_words = torch.where((TOKENS >= 3) & (TOKENS < 9), TOKENS + 96, TOKENS)
    assert_close(embed_text(checkpoint, with_new_words), original.encode_text(TOKENS))


def preprocessing(folder: Path, name: str, config: object) -> NDArray[Any]:
    found = read_huggingface(rewrite(folder, config, name)).preprocess
    return np.array([found.size, found.mean[0], found.std[2], found.interpolation, found.resize_mode], dtype=object)


def test_preprocessing_is_what_the_folder_says(folder: Path) -> None:
    assert read_huggingface(folder).preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    config: dict[str, Any] = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    nested = {"image_processor": config | {"size": {"shortest_edge": 32}, "resample": 2}}
    assert list(preprocessing(folder, "processor_config.json", nested)) == [32, 0.1, 0.6, "bilinear", "shortest"]
    old = config | {"size": 32, "crop_size": 32, "resample": 3}
    assert list(preprocessing(folder, "preprocessor_config.json", old)) == [32, 0.1, 0.6, "bicubic", "shortest"]
    new = config | {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    assert list(preprocessing(folder, "preprocessor_config.json", new)) == [32, 0.1, 0.6, "bicubic", "squash"]


def test_preprocessing_that_cannot_be_followed_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        preprocessing(folder, "preprocessor_config.json", {"size": {"shortest_edge": 40}, "crop_size": 32})
    assert "resizes to 40 pixels before it crops to 32" in caplog.text
    with pytest.raises(EncoderError, match="makes pictures of 64 pixels, but the model takes 32"):
        preprocessing(folder, "preprocessor_config.json", {"size": 64, "crop_size": 64})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip"}, "holds a model of type siglip;.* such as open_clip:ViT-B-16-SigLIP/webli"),
        ({"model_type": "siglip2"}, "such as open_clip:ViT-B-16-SigLIP2/webli"),
        ({"model_type": "metaclip_2"}, "such as open_clip:ViT-H-14-worldwide"),
        ({"model_type": "blip"}, "clip-retrieval models list"),
        ({}, "holds a model of type None"),
        ([], "config.json cannot be used: expected `object`, got `array`"),
        (CONFIG | {"text_config": ["a"]}, r"config\.json cannot be used: text_config: expected `object \| null`, got"),
        (CONFIG | {"text_config": TEXT | {"num_attention_heads": "8"}}, "num_attention_heads: expected `int"),
        (CONFIG | {"vision_config": VISION | {"num_attention_heads": 0}}, "num_attention_heads: expected `int` >= 1"),
        (CONFIG | {"text_config": TEXT | {"eos_token_id": [2]}}, "eos_token_id: expected `int"),
        (CONFIG | {"text_config": TEXT | {"hidden_act": "relu"}}, "uses the activation relu; known are quick_gelu"),
        (CONFIG | {"text_config": TEXT | {"hidden_act": "gelu"}}, "QuickGELU in one tower and GELU in the other"),
    ],
)
def test_configurations_that_are_no_clip_are_one_sentence(folder: Path, config: object, message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        read_huggingface(rewrite(folder, config))
    assert "\n" not in str(caught.value)


def test_null_in_a_preprocessor_is_as_good_as_absent(folder: Path) -> None:
    said = dict.fromkeys(("size", "crop_size", "image_mean", "image_std", "resample", "do_center_crop"))
    preprocessing(folder, "preprocessor_config.json", said)
    assert read_huggingface(folder).preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


def test_pictures_that_are_not_normalized_keep_their_values(folder: Path) -> None:
    preprocessing(folder, "preprocessor_config.json", {"do_normalize": False, "image_mean": [0.5, 0.5, 0.5]})
    found = read_huggingface(folder).preprocess
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "expected `object`, got `array`"),
        ({"image_mean": [0.1]}, "image_mean: expected `array` of length 3"),
        ({"image_mean": ["a", "b", "c"]}, r"image_mean\[0\]: expected `float`, got `str`"),
        ({"image_std": [0, 1, 1]}, r"image_std\[0\]: expected `float` > 0"),
        ({"size": {"longest_edge": 32}}, "neither shortest_edge nor height"),
        ({"size": "32"}, "size: expected"),
        ({"resample": 9}, "resample: invalid enum value 9"),
        ({"rescale_factor": 1}, "does not rescale pixels by 1/255"),
    ],
)
def test_a_preprocessor_of_another_shape_names_file_and_key(folder: Path, config: object, message: str) -> None:
    with pytest.raises(EncoderError, match=rf"preprocessor_config\.json .*{message}"):
        preprocessing(folder, "preprocessor_config.json", config)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("_projection.weight", "has no projection into the space"),
        ("layers.1.mlp.fc1.bias", "is an incomplete CLIP: 'text_model.encoder.layers.1.mlp.fc1.bias' is missing"),
    ],
)
def test_missing_tensors_are_named(folder: Path, original: nn.Module, missing: str, message: str) -> None:
    state: dict[str, Any] = {key: tensor for key, tensor in to_layout(original).items() if not key.endswith(missing)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=message):
        read_huggingface(folder)


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(EncoderError, match=r"model\.safetensors is cut off"):
        read_huggingface(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin"):
        read_huggingface(folder)
    (folder / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"config\.json cannot be read"):
        read_huggingface(folder)
