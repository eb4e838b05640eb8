from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.conversion_cache import make_light
from clip_retrieval.encoder.early_conversion import EarlyConversion
from clip_retrieval.encoder.load import convert_without_torch
from clip_retrieval.encoder.uri import DEMO_MODEL, parse_uri
from clip_retrieval.process.stoppable import Stoppable

pytest.importorskip("openvino")

MODEL = f"open_clip:local-dir:{DEMO_MODEL}"
CONFIG = EncoderConfig(clip_model=MODEL, device="cpu", precision="fp32")
SECONDS_TO_HANG = 60


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_that_is_converted_early_is_what_it_would_be_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    with EarlyConversion() as conversion:
        conversion.begin(CONFIG)
        conversion.wait()
        early = read(cache)
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "later"))
    assert make_light(parse_uri(MODEL), CONFIG) is not None
    assert early == read(tmp_path / "later")
    assert len(early) > 4


def test_for_int8_both_the_plain_and_the_quantized_graphs_are_made(cache: Path) -> None:
    convert_without_torch(EncoderConfig(clip_model=MODEL, device="cpu", precision="int8"))
    assert sorted(path.name.endswith("-int8") for path in (cache / "models").iterdir()) == [False, True]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_conversion_that_is_stopped_leaves_nothing(cache: Path, precision: str) -> None:
    config = EncoderConfig(clip_model=MODEL, device="cpu", precision=precision)  # type: ignore[arg-type]
    if precision == "int8":
        make_light(parse_uri(MODEL), CONFIG)  # so that it is quantizing that is stopped
    before, gate = read(cache / "models"), Event()

    def work() -> None:
        gate.wait(SECONDS_TO_HANG)
        convert_without_torch(config)

    thread = Stoppable(work)
    thread.start()
    thread.is_unwanted.set()
    gate.set()
    thread.stop()
    assert read(cache / "models") == before


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(clip_model="hash:8", device="cpu"),
        EncoderConfig(clip_model="hf_clip:org/name", device="cpu"),  # on a hub
        EncoderConfig(clip_model="random:RN50", device="cpu"),
        EncoderConfig(clip_model=MODEL, device="cuda"),
        EncoderConfig(clip_model=MODEL, device="cpu", precision="fp16"),
    ],
)
def test_what_needs_torch_or_a_hub_or_no_conversion_is_left_alone(cache: Path, config: EncoderConfig) -> None:
    convert_without_torch(config)
    assert not cache.exists()
