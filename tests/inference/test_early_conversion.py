"""The model is converted while the input is listed, and errors are those of the usual order."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import EncoderError, SourceError
from clip_retrieval.inference import run
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.run import run_inference
from clip_retrieval.options import build_config
from clip_retrieval.sources import open_source

pytest.importorskip("openvino")

SECONDS_TO_HANG = 120


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photos" / "red.png")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_of(photos: Path, model: object = DEMO_MODEL, **options: object) -> InferenceConfig:
    given = {"clip_model": f"open_clip:local-dir:{model}", "device": "cpu", "precision": "fp32", **options}
    return build_config(InferenceConfig, {"num_prepro_workers": 1, **given}, (str(photos), str(photos.parent / "out")))


def test_the_model_is_converted_while_the_input_is_listed(
    monkeypatch: pytest.MonkeyPatch, photos: Path, cache: Path
) -> None:
    seen: list[Path] = []

    def list_slowly(*arguments: object) -> object:
        start = time.monotonic()
        while time.monotonic() - start < SECONDS_TO_HANG and not list(cache.glob("models/*/textual.onnx")):
            time.sleep(0.01)
        seen.extend(cache.glob("models/*/textual.onnx"))
        return open_source(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "open_source", list_slowly)
    assert run_inference(config_of(photos)).stats.sample_count == 1
    assert len(seen) == 1


def test_an_input_that_cannot_be_used_is_told_first_and_nothing_half_made_is_left(photos: Path, cache: Path) -> None:
    (photos / "red.png").unlink()
    with pytest.raises(SourceError, match="photos"):
        run_inference(config_of(photos))
    assert all(list(folder.glob("model.json")) for folder in cache.glob("models/*"))


def test_a_model_that_cannot_be_read_is_told_as_without_the_early_start(tmp_path: Path, photos: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(EncoderError, match="is cut off"):
        run_inference(config_of(photos, tmp_path / "model"))


def test_a_run_that_is_done_converts_nothing_anew(photos: Path, cache: Path) -> None:
    run_inference(config_of(photos))
    made = [(path, path.stat().st_ino) for path in sorted(cache.rglob("*.onnx"))]
    assert run_inference(config_of(photos)).stats.sample_count == 1
    assert [(path, path.stat().st_ino) for path in sorted(cache.rglob("*.onnx"))] == made
