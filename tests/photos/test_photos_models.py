"""Which model a new folder gets: named, set, the best that is here, else the demo's."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.pretrained import get_pretrained_cfg

from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError
from clip_retrieval.photos.known_models import KNOWN, Known
from clip_retrieval.photos.models import choose_model, read_settings, write_setting


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "CLIP_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def keep_in_hub(home: Path, repository: str, name: str = "open_clip_model.safetensors") -> Path:
    file = home / "hub-home" / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / "abc" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    return file


def test_without_any_model_and_network_the_demo_model_is_taken() -> None:
    assert choose_model(None).clip_model == "demo"


def test_the_best_model_that_is_here_is_taken(home: Path) -> None:
    keep_in_hub(home, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert choose_model(None).clip_model == "open_clip:ViT-B-32/laion2b_s34b_b79k"
    best = keep_in_hub(home, "timm/vit_large_patch14_clip_224.openai")
    assert choose_model(None).clip_model == "ViT-L/14"
    best.rename(best.with_name("config.json"))  # a description without weights is no model
    assert choose_model(None).clip_model == "open_clip:ViT-B-32/laion2b_s34b_b79k"
    openai = home / ".cache" / "clip" / "ViT-B-16.pt"
    openai.parent.mkdir(parents=True)
    openai.write_bytes(b"weights")
    assert choose_model(None).clip_model == "ViT-B/16"


def test_a_setting_goes_before_what_is_here_and_a_name_before_the_setting(home: Path) -> None:
    keep_in_hub(home, "timm/vit_large_patch14_clip_224.openai")
    write_setting("hash:8")
    assert choose_model(None).clip_model == "hash:8"
    assert choose_model("demo").clip_model == "demo"
    write_setting("auto")
    assert read_settings().clip_model is None
    assert choose_model(None).clip_model == "ViT-L/14"


def test_a_setting_that_names_no_model_is_refused() -> None:
    with pytest.raises(EncoderError, match="there is no model"):
        write_setting("no-such-model")
    assert read_settings().clip_model is None


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.clip_model)
def test_every_known_name_opens_the_repository_that_is_looked_for(known: Known) -> None:
    name = parse_uri(known.clip_model)
    if name.kind == "checkpoint":
        assert name.architecture == f"hf-hub:{known.repositories[0]}"
    else:
        assert get_pretrained_cfg(name.architecture, name.weights)["hf_hub"].strip("/") in known.repositories
