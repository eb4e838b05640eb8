"""open_clip models whose towers a Checkpoint cannot describe still become open_clip's folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest

from clip_retrieval.encoder.export.config import ConvertConfig
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError

TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION: dict[str, Any] = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
MODELS: dict[str, dict[str, Any]] = {
    "convnext": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 24,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "sigmoid": {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an architecture that open_clip knows for this test."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"tests-{request.param}", MODELS[request.param])
    return f"tests-{request.param}"


def test_any_architecture_becomes_a_folder_of_open_clip(name: str, tmp_path: Path) -> None:
    made = run_convert(ConvertConfig(source=f"random:{name}?seed=3", out=str(tmp_path / "out"), to="open_clip"))

    assert min(agreement.least_cosine for agreement in made.agreement.values()) > 0.99999
    assert set(made.agreement) == {"image", "text"}
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"] == MODELS[name.removeprefix("tests-")]
    again = load_encoder(str(tmp_path / "out"))
    assert again.info.fingerprint == load_encoder(f"random:{name}?seed=3").info.fingerprint


def test_one_tower_is_no_folder_of_open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tests-coca", MODELS["coca"])
    out = str(tmp_path / "out")
    with pytest.raises(EncoderError, match=r"always builds both towers.*--to onnx"):
        run_convert(ConvertConfig(source="random:tests-coca", out=out, to="open_clip", image_only=True))
