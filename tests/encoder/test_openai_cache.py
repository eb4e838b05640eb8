"""OpenAI's own files: found where OpenAI's package keeps them, and opened by open_clip's names, as the advice says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.openai_cache import openai_file
from clip_retrieval.encoder.uri import OPENAI_NAMES, parse_uri
from clip_retrieval.errors import EncoderError

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Write ViT-B-32.pt as a TorchScript archive, like OpenAI's files; open_clip's architecture is as small as it."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", TINY)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", TINY | {"quick_gelu": True})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLIP_DIR", raising=False)
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY, quick_gelu=True).eval()
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int64))
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "ViT-B-32.pt"
    with warnings.catch_warnings():  # torch.jit is deprecated; the files it wrote are not
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), path)  # type: ignore[no-untyped-call]
    return path


def in_cache_option(archive: Path, _: pytest.MonkeyPatch) -> str | None:
    return str(archive.parent)


def in_clip_dir(archive: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.setenv("CLIP_DIR", str(archive.parent))
    return None


def in_home(archive: Path, _: pytest.MonkeyPatch) -> str | None:
    folder = Path("~/.cache/clip").expanduser()
    folder.mkdir(parents=True)
    archive.rename(folder / archive.name)
    return None


@pytest.mark.parametrize("put", [in_cache_option, in_clip_dir, in_home])
def test_weights_that_openais_package_keeps_are_found(
    archive: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path, pytest.MonkeyPatch], str | None]
) -> None:
    wanted = load_encoder(str(archive)).encode_texts(["a dog"])

    cache = put(archive, monkeypatch)

    encoder = load_encoder(EncoderConfig(clip_model="ViT-B/32", clip_cache_path=cache, device="cpu"))
    assert encoder.encode_texts(["a dog"]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("architecture", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_the_advice_for_weights_fetched_elsewhere_works(archive: Path, architecture: str) -> None:
    with pytest.raises(EncoderError, match=r"OpenAI's ViT-B-32\.pt \(or CLIP_DIR, or ~/\.cache/clip\)"):
        load_encoder("ViT-B/32")

    found = load_encoder(f"open_clip:{architecture}/{archive}")

    assert found.encode_texts(["a dog"]) == pytest.approx(load_encoder(str(archive)).encode_texts(["a dog"]), abs=1e-5)
    assert found.info.preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


def test_files_are_named_as_openai_names_them() -> None:
    files = [openai_file(parse_uri(name)) for name in OPENAI_NAMES]
    assert files[:2] == ["RN50.pt", "RN101.pt"]
    assert files[-2:] == ["ViT-L-14.pt", "ViT-L-14-336px.pt"]
    assert openai_file(parse_uri("open_clip:ViT-B-32/laion2b_s34b_b79k")) is None
