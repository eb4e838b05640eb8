"""open_clip's families: pictures, activation and weights as open_clip has them for published weights."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import nn

from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
from clip_retrieval.encoder.engines.openclip_model import read_preprocess
from clip_retrieval.encoder.engines.openclip_published import published_preprocess, resolve_weights
from clip_retrieval.encoder.formats.huggingface import OPEN_CLIP_NAMES
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError

PUBLISHED = [
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("ViT-B-32-quickgelu", "openai"),
    ("ViT-L-14-336-quickgelu", "openai"),
    ("ViT-L-14", "laion2b_s32b_b82k"),
    ("RN50-quickgelu", "openai"),
    ("ViT-B-16-SigLIP", "webli"),
    ("ViT-B-16-SigLIP2", "webli"),
    ("MobileCLIP-S1", "datacompdr"),
    ("MobileCLIP2-S3", "dfndr2b"),
    ("PE-Core-T-16-384", "meta"),
    ("PE-Core-B-16", "meta"),
    ("convnext_base_w", "laion2b_s13b_b82k"),
    ("coca_ViT-B-32", "laion2b_s13b_b90k"),
    ("EVA02-B-16", "merged2b_s8b_b131k"),
    ("ViT-H-14-CLIPA", "datacomp1b"),
    ("ViT-H-14-378-quickgelu", "dfn5b"),
    ("nllb-clip-base-siglip", "v1"),
]
SIZES = [(301, 257), (97, 513), (640, 481), (33, 35), (224, 225)]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def bare_model(config: dict[str, Any]) -> nn.Module:
    """Make a model that only has what open_clip sets on each one for its pictures."""
    model = nn.Module()
    model.visual = nn.Module()
    open_clip.model.set_model_preprocess_cfg(model, config)
    return model


def check_pictures(config: dict[str, Any]) -> None:
    """Compare with open_clip's transform, bit for bit: as bytes, and as the image tower gets them."""
    preprocess = read_preprocess(bare_model(config), "x")
    info = EncoderInfo("x", 1, preprocess, "", "fp32", "cpu")
    encoder = object.__new__(OpenClipEncoder)
    encoder.device = torch.device(info.device)
    encoder.mean, encoder.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    for picture in pictures():
        assert encoder.scale(torch.from_numpy(preprocess(picture)[None]))[0].equal(transform(picture))


@pytest.mark.parametrize(("architecture", "tag"), PUBLISHED)
def test_pictures_are_prepared_as_for_the_published_weights(architecture: str, tag: str) -> None:
    published = get_pretrained_cfg(architecture, tag)
    assert published
    config = merge_preprocess_dict(PreprocessCfg(), published)
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    check_pictures(config | {"size": (size, size)})


@pytest.mark.parametrize("changes", [{"resize_mode": "longest", "fill_color": 7}, {"mean": 0.5, "std": 0.25}])
def test_other_ways_of_open_clip_are_followed(changes: dict[str, Any]) -> None:
    check_pictures(merge_preprocess_dict(PreprocessCfg(), changes) | {"size": 96})


def test_random_interpolation_is_bicubic_as_in_open_clip() -> None:
    check_pictures(merge_preprocess_dict(PreprocessCfg(), {"interpolation": "random"}))


def test_pictures_that_are_not_square_are_refused() -> None:
    with pytest.raises(EncoderError, match="takes pictures of 128 x 256; only square"):
        read_preprocess(bare_model(merge_preprocess_dict(PreprocessCfg(), {"size": (256, 128)})), "x")


def test_every_published_weight_can_be_prepared_for() -> None:
    for architecture, tags in _PRETRAINED.items():
        for config in tags.values():
            wanted = merge_preprocess_dict(PreprocessCfg(), config)
            assert read_preprocess(bare_model(wanted), "x").mean == tuple(wanted["mean"])
        published_preprocess(parse_uri(f"random:{architecture}"))


@pytest.mark.parametrize(("architecture", "tag"), PUBLISHED)
def test_random_weights_and_files_take_pictures_as_all_published_ones_do(
    architecture: str, tag: str, tmp_path: Path
) -> None:
    if architecture == "ViT-L-14":  # its published weights differ
        return
    expected = {key: get_pretrained_cfg(architecture, tag)[key] for key in ("mean", "std", "resize_mode")}
    (tmp_path / "weights.pt").write_bytes(b"")
    for uri in (f"random:{architecture}", f"open_clip:{architecture}/{tmp_path}/weights.pt"):
        found = published_preprocess(parse_uri(uri))
        assert {key: found[key] for key in expected} == expected


# With weights: a small architecture whose tags are files on this machine, which open_clip knows how to load.

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
Publish = Callable[..., str]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    """Give a function that registers an architecture, and ARCH-quickgelu, with tags of one random file."""
    names = ("tests-family", "tests-family-quickgelu")
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(TINY | {"quick_gelu": name.endswith("quickgelu")}))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model(names[0])
    for value in model.parameters():
        value.data.add_(0.2 * torch.randn_like(value))
    torch.save(model.state_dict(), tmp_path / "weights.pt")

    def register(**tags: dict[str, Any]) -> str:
        configs = {tag: {"file": str(tmp_path / "weights.pt"), **config} for tag, config in tags.items()}
        quick = {tag: config for tag, config in configs.items() if config.get("quick_gelu")}
        monkeypatch.setitem(_PRETRAINED, names[0], configs)
        monkeypatch.setitem(_PRETRAINED, names[1], quick)
        return names[0]

    yield register
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path)
    for name in names:
        del open_clip.factory._MODEL_CONFIGS[name]


def test_a_tag_of_quickgelu_weights_gets_that_activation(publish: Publish) -> None:
    name = publish(mine={"quick_gelu": True}, other={})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    asked, quick = load_encoder(f"open_clip:{name}/mine"), load_encoder(f"open_clip:{name}-quickgelu/mine")
    plain = load_encoder(f"open_clip:{name}/other")
    assert (asked.encode_texts(["a dog"]) == quick.encode_texts(["a dog"])).all()
    assert (asked.encode_images(pixels) == quick.encode_images(pixels)).all()
    assert not np.allclose(asked.encode_images(pixels), plain.encode_images(pixels), atol=1e-3)
    reference: Any = open_clip.create_model(f"{name}-quickgelu", pretrained="mine").eval()
    with torch.inference_mode():
        wanted = reference.encode_text(open_clip.get_tokenizer(name)(["a dog"]), normalize=True).numpy()
    assert np.allclose(asked.encode_texts(["a dog"]), wanted, atol=1e-5)


def test_every_published_quickgelu_tag_opens_the_quickgelu_architecture() -> None:
    found = 0
    for architecture, tags in list(_PRETRAINED.items()):
        for tag, config in tags.items():
            resolved = resolve_weights(parse_uri(f"open_clip:{architecture}/{tag}"), None)
            is_quick = open_clip.get_model_config(resolved.architecture).get("quick_gelu", False)
            assert is_quick or not config.get("quick_gelu")
            assert get_pretrained_cfg(resolved.architecture, tag) == config
            found += resolved.architecture != architecture
    assert found >= 25
    assert resolve_weights(parse_uri("open_clip:ViT-B-32/openai"), None).architecture == "ViT-B-32-quickgelu"
    assert resolve_weights(parse_uri("open_clip:ViT-B-32/laion2b_s34b_b79k"), None).architecture == "ViT-B-32"


def test_a_file_is_prepared_for_as_the_published_weights_and_says_so(
    publish: Publish, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = publish(one=SIGLIP, two=SIGLIP)
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(f"open_clip:{name}/{tmp_path}/weights.pt")
    preprocess = encoder.info.preprocess
    assert (preprocess.mean, preprocess.resize_mode) == ((0.5,) * 3, "squash")
    assert "pictures are prepared as for all published weights of it (mean (0.5, 0.5, 0.5)" in caplog.text
    assert load_encoder(f"random:{name}").info.preprocess == preprocess
    assert load_encoder(f"open_clip:{name}/one").info.preprocess == preprocess


def test_a_file_of_an_architecture_with_several_ways_is_prepared_for_as_usual_with_a_warning(
    publish: Publish, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = publish(one=SIGLIP, two={})
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(f"open_clip:{name}/{tmp_path}/weights.pt")
    assert encoder.info.preprocess.resize_mode == "shortest"
    assert "differ in how pictures are prepared" in caplog.text


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    with pytest.raises(EncoderError, match=r"has no weights, neither open_clip_model\.safetensors"):
        load_encoder(f"open_clip:local-dir:{tmp_path}")


def test_the_names_that_are_told_are_open_clips() -> None:
    told = [name for names in OPEN_CLIP_NAMES.values() for name in re.findall(r"open_clip:([\w-]+)/(\w+)", names)]
    assert len(told) == len(OPEN_CLIP_NAMES)
    assert set(told) <= set(open_clip.list_pretrained())
