from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.cache_home import cache_home
from clip_retrieval.encoder import load as loading
from clip_retrieval.encoder.base import Embeddings, Encoder, Pixels
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.hashing import HashEncoder
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.inference.worker import number_format as precision
from clip_retrieval.inference.worker import remembered_checks
from clip_retrieval.inference.worker.number_format import CHECKED_SAMPLES, FirstSamples, candidates

WritePictures = Callable[[Path, int], Path]


class Rounded(HashEncoder):
    """The weight-free encoder in a format that errs by so much."""

    def __init__(self, name: str, error: float) -> None:
        super().__init__(parse_uri("hash:64"))
        self.info = dataclasses.replace(self.info, precision=name)
        self.error = error

    def encode_images(self, pixels: Pixels) -> Embeddings:
        return self.err(super().encode_images(pixels))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self.err(super().encode_texts(texts))

    def err(self, rows: Embeddings) -> Embeddings:
        moved = rows + self.error * np.roll(rows, 1, axis=1)
        found: Embeddings = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
        return found


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Give the errors of the formats that the machine seems to have, the fastest first; tests may change them."""
    errors = {"int8": 0.2, "bf16": 0.01, "fp32": 0.0}

    def load(config: EncoderConfig, *, workload: str = "query") -> Encoder:
        assert workload == "bulk" or config.precision == "fp32"
        return Rounded(config.precision, errors[config.precision])

    monkeypatch.setattr(precision, "load_encoder", load)
    monkeypatch.setattr(precision, "list_precisions", lambda _: tuple(errors))
    return errors


def embed(source: Path, output: Path, **options: Any) -> None:
    """Embed without reader processes: the check is the worker's, and two of them start for 0.4 seconds."""
    clip_inference(source, output, **{"clip_model": "hash:64", "num_prepro_workers": 0, **options})


def manifest_of(output: Path) -> dict[str, object]:
    encoder: dict[str, object] = json.loads((output / "manifest.json").read_text())["encoder"]
    return encoder


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({"int8": 0.01, "bf16": 0.01}, "int8"),
        ({"int8": 0.2, "bf16": 0.01}, "bf16"),
        ({"int8": 0.2, "bf16": 0.2}, "fp32"),
        ({"int8": float("nan"), "bf16": 0.01}, "bf16"),
    ],
)
def test_the_first_that_is_exact_enough_is_taken_and_written_down(
    tmp_path: Path, write_pictures: WritePictures, formats: dict[str, float], errors: dict[str, float], chosen: str
) -> None:
    formats.update(errors)
    embed(write_pictures(tmp_path / "in", 20), tmp_path / "out")
    about = manifest_of(tmp_path / "out")
    assert about["precision"] == chosen
    check = about["precision_check"]
    assert isinstance(check, dict)
    assert check["samples"] == CHECKED_SAMPLES
    assert set(check["least_cosine"]) == {"image", "text"}
    assert (min(check["least_cosine"].values()) >= 0.999) == (chosen != "fp32")


def test_what_is_asked_for_is_not_tried(
    tmp_path: Path, write_pictures: WritePictures, formats: dict[str, float]
) -> None:
    formats["int8"] = 0.5
    embed(write_pictures(tmp_path / "in", 3), tmp_path / "out", precision="int8")
    assert manifest_of(tmp_path / "out")["precision"] == "int8"
    assert "precision_check" not in manifest_of(tmp_path / "out")


def test_a_run_goes_on_in_the_format_that_it_was_begun_in(
    tmp_path: Path, write_pictures: WritePictures, formats: dict[str, float]
) -> None:
    source, options = write_pictures(tmp_path / "in", 6), {"output_partition_count": 2}
    embed(source, tmp_path / "out", **options)
    before = (tmp_path / "out" / "img_emb" / "img_emb_1.npy").read_bytes()
    (tmp_path / "out" / "metadata" / "metadata_1.parquet").unlink()
    formats["int8"] = 0.0  # another machine, on which int8 would do
    embed(source, tmp_path / "out", **options)
    assert manifest_of(tmp_path / "out")["precision"] == "bf16"
    assert (tmp_path / "out" / "img_emb" / "img_emb_1.npy").read_bytes() == before


@pytest.mark.usefixtures("formats")
def test_samples_that_cannot_be_used_are_passed_over(tmp_path: Path, write_pictures: WritePictures) -> None:
    source = write_pictures(tmp_path / "in", 40)
    for number in range(37):
        for suffix, payload in ((".jpg", b"broken"), (".txt", b"\xff")):
            (source / f"{number:05d}{suffix}").write_bytes(payload)
    embed(source, tmp_path / "out", batch_size=2)
    check = manifest_of(tmp_path / "out")["precision_check"]
    assert isinstance(check, dict)
    assert check["samples"] == 3


@pytest.mark.usefixtures("formats")
def test_without_any_sample_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(Exception, match="no sample"):
        embed(tmp_path / "in", tmp_path / "out")
    assert manifest_of(tmp_path / "out")["precision"] == "fp32"


def test_candidates() -> None:
    asked = EncoderConfig(clip_model="random:ViT-B-32", precision="bf16", device="cpu")
    auto = EncoderConfig(clip_model="random:ViT-B-32", device="cpu")
    assert candidates(asked, "fp32") == ("bf16",)
    assert candidates(auto, None) == loading.list_precisions(auto)
    assert candidates(auto, "fp32") == ("fp32",)
    assert candidates(auto, "of another device") == loading.list_precisions(auto)
    assert candidates(EncoderConfig(clip_model="hash:64"), None) == ("fp32",)
    assert candidates(EncoderConfig(clip_model="demo"), None) == ("fp32",)
    assert loading.list_precisions(EncoderConfig(clip_model="random:ViT-B-32", device="cuda:0")) == ("fp16", "fp32")


def note_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the format of each encoder that checks try."""
    tried: list[str] = []
    encode = precision.try_to_encode

    def noted(encoder: Encoder, samples: FirstSamples) -> dict[str, Embeddings]:
        tried.append(encoder.info.precision)
        return encode(encoder, samples)

    monkeypatch.setattr(precision, "try_to_encode", noted)
    return tried


def test_a_check_that_went_well_is_not_made_again(
    tmp_path: Path, write_pictures: WritePictures, formats: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    formats["int8"] = 0.001
    tried, source = note_checks(monkeypatch), write_pictures(tmp_path / "in", 20)
    embed(source, tmp_path / "pictures", enable_text=False)
    embed(source, tmp_path / "both")  # texts were not checked yet
    assert tried == ["int8", "int8"]
    embed(source, tmp_path / "later")
    embed(source, tmp_path / "pictures alone", enable_text=False)
    assert tried == ["int8", "int8"]
    assert manifest_of(tmp_path / "later") == manifest_of(tmp_path / "both")


@pytest.mark.parametrize(("error", "count"), [(0.04, 20), (0.001, 7)])
def test_a_check_is_made_again_that_came_near_the_bound_or_had_few_samples(
    tmp_path: Path,
    write_pictures: WritePictures,
    formats: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    error: float,
    count: int,
) -> None:
    formats["int8"] = error
    tried, source = note_checks(monkeypatch), write_pictures(tmp_path / "in", count)
    for name in ("first", "second"):
        embed(source, tmp_path / name)
        assert manifest_of(tmp_path / name)["precision"] == "int8"
    assert tried == ["int8", "int8"]


def test_a_check_of_another_cpu_or_one_that_is_damaged_does_not_count(
    tmp_path: Path, write_pictures: WritePictures, formats: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    formats["int8"] = 0.001
    tried, source = note_checks(monkeypatch), write_pictures(tmp_path / "in", 20)
    embed(source, tmp_path / "first")
    for place in (cache_home() / "checks").iterdir():
        place.write_text('{"samples": 20, "least_cosine": {"image"')
    embed(source, tmp_path / "damaged")
    monkeypatch.setattr(remembered_checks, "cpu_units", lambda: ["x86_64", "another unit"])
    embed(source, tmp_path / "elsewhere")
    assert tried == ["int8"] * 3


def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path: Path, write_pictures: WritePictures, formats: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    formats["int8"] = 0.001
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    embed(write_pictures(tmp_path / "in", 20), tmp_path / "out")
    assert manifest_of(tmp_path / "out")["precision"] == "int8"
