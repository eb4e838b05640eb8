"""Weights by their tags and repositories: found as open_clip finds them, without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.conversion_cache import is_here, read_light
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.formats.openclip_hub import find_tag, read_lists
from clip_retrieval.encoder.formats.openclip_reader import NotFetchedError
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError

open_clip = pytest.importorskip("open_clip")
published = pytest.importorskip("clip_retrieval.encoder.engines.openclip_published")

TAGGED = "open_clip:ViT-B-32/laion2b_s34b_b79k"
REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
TYPES = {torch.float32: "F32", torch.int64: "I64"}


def fill_cache(cache: Path, repository: str, config: dict[str, Any]) -> None:
    """Write weights that are all zeros, in a sparse file, in the layout of the hub's cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with torch.device("meta"):
        state = open_clip.CLIP(**config).state_dict()
    header: dict[str, Any] = {}
    end = 0
    for name, value in state.items():
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    said = json.dumps(header).encode()
    with (snapshot / "open_clip_model.safetensors").open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        file.truncate(8 + len(said) + end)


def test_the_list_is_open_clips() -> None:
    assert read_lists()["_PRETRAINED"] == open_clip.pretrained._PRETRAINED


def test_every_tag_has_the_architecture_that_open_clip_would_be_given() -> None:
    for architecture, tag in open_clip.list_pretrained():
        found = find_tag(architecture, tag)
        assert found is not None, (architecture, tag)
        assert found[0] == published.match_activation(architecture, tag)
    assert find_tag("ViT-B-32", "no-such-tag") is None
    assert find_tag("no-such-architecture", "openai") is None
    assert find_tag("ViT-B-32", None) is None


@pytest.mark.parametrize(
    ("uri", "architecture", "repository"),
    [
        (TAGGED, "ViT-B-32", REPOSITORY),
        ("open_clip:ViT-B-32/laion400m_e32", "ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.laion400m_e32"),
        (f"open_clip:hf-hub:{REPOSITORY}", "ViT-B-32", REPOSITORY),
    ],
)
def test_weights_in_the_hubs_cache_are_read_without_open_clip(
    tmp_path: Path, uri: str, architecture: str, repository: str
) -> None:
    config = open_clip.get_model_config(architecture)
    fill_cache(tmp_path, repository, config)
    found = read_light(parse_uri(f"{uri}?mean=0.25" if "hf-hub" not in uri else uri), str(tmp_path))
    assert found is not None
    assert found.model_config == config
    assert found.preprocess.mean[0] == (0.25 if "hf-hub" not in uri else pytest.approx(0.481, abs=0.001))
    assert found.towers == ("image", "text")
    assert is_here(parse_uri(uri), str(tmp_path))


@pytest.mark.parametrize(
    "uri", ["open_clip:ViT-B-16-SigLIP/webli", "open_clip:roberta-ViT-B-32/laion2b_s12b_b32k", "open_clip:RN50", TAGGED]
)
def test_other_models_and_weights_that_are_not_here_are_left_to_open_clip(tmp_path: Path, uri: str) -> None:
    assert constants.HF_HUB_OFFLINE  # so open_clip has its own sentence
    assert read_light(parse_uri(uri), str(tmp_path)) is None
    assert not is_here(parse_uri(uri), str(tmp_path)) or uri == "open_clip:RN50"


def test_a_hub_that_cannot_be_reached_is_told_at_once_and_in_open_clips_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    config = EncoderConfig(clip_model="open_clip:ViT-L-14/openai", device="cpu", clip_cache_path=str(tmp_path))
    with pytest.raises(NotFetchedError) as light:
        read_light(parse_uri(config.clip_model), str(tmp_path))
    with pytest.raises(EncoderError) as through_torch:
        open_engine(parse_uri(config.clip_model), config)
    assert str(light.value) == str(through_torch.value)
