"""Damaged files of converted models: those in our cache are made again, those of a user are named."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_retrieval.encoder import converted_places as places
from clip_retrieval.encoder.base import Embeddings, Encoder, Workload
from clip_retrieval.encoder.config import EncoderConfig, Precision
from clip_retrieval.encoder.engines.onnx import OnnxEncoder
from clip_retrieval.encoder.formats import onnx_sums
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import EncoderError
from tests.encoder.damage import WAYS, put_folder, write_garbage, zero_middle

pytest.importorskip("openvino")

MODEL = f"open_clip:local-dir:{DEMO_MODEL}"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
DAMAGES = [
    *(("visual.onnx.data", damage) for damage in WAYS),
    *(("model.json", damage) for damage in (zero_middle, put_folder, Path.unlink)),
    *((file, zero_middle) for file in ("sums.json", "visual.onnx", "textual.onnx.data")),
    ("vocabulary.txt", put_folder),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the model in fp32 and in int8."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_RETRIEVAL_CACHE", str(cache))
        open_model("bulk", "int8")
    return cache


@pytest.fixture(scope="module")
def wanted(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    """What the undamaged model gives; of a copy, since opening it leaves notes in its cache."""
    cache = shutil.copytree(converted, tmp_path_factory.mktemp("undamaged") / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_RETRIEVAL_CACHE", str(cache))
        return open_model().encode_images(PIXELS)


@pytest.fixture
def cache(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(converted, tmp_path / "cache")
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    places.REMOVED.clear()
    return tmp_path / "cache"


def open_model(workload: Workload = "bulk", precision: Precision = "fp32") -> Encoder:
    return load_encoder(EncoderConfig(clip_model=MODEL, precision=precision, device="cpu"), workload=workload)


def models(cache: Path) -> tuple[Path, Path]:
    """Return the folders of the model in fp32 and in int8."""
    plain, quantized = sorted((cache / "models").iterdir(), key=lambda folder: len(folder.name))
    return plain, quantized


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_model_of_our_cache_is_made_again(
    cache: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], file: str, wanted: Embeddings
) -> None:
    plain, _ = models(cache)
    before = bytes_of(plain)
    damage(plain / file)
    encoder = open_model()
    assert isinstance(encoder, OnnxEncoder)
    assert (encoder.encode_images(PIXELS) * wanted).sum(axis=1).min() > 0.99999
    encoder.encode_texts(["a dog"])
    assert bytes_of(plain) == before
    assert len(caplog.messages) == 1
    assert file in caplog.text
    assert "prepared for this CPU again" in caplog.text
    assert sorted(path.name for path in plain.parent.iterdir()) == sorted(path.name for path in models(cache))


def test_a_query_has_a_damaged_model_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, _ = models(cache)
    before = bytes_of(plain)
    zero_middle(plain / "textual.onnx.data")
    encoder = open_model("once")
    assert isinstance(encoder, OnnxEncoder)
    encoder.start_text_side(["a dog"])
    assert np.isfinite(encoder.encode_texts(["a dog"])).all()
    assert bytes_of(plain) == before
    assert caplog.text.count("prepared for this CPU again") == 1


@pytest.mark.parametrize("is_taken_again", [False, True])
def test_a_model_that_another_process_made_again_meanwhile_stays(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_taken_again: bool
) -> None:
    plain, _ = models(cache)
    for name in ("a", "b"):
        shutil.copytree(plain, cache / name)
    zero_middle(plain / "visual.onnx")

    def find_damage(folder: Path, *options: Any, **more: Any) -> str | None:
        """Find what is wrong; then the other process, which found it too, makes the model again."""
        said = onnx_sums.find_damage(folder, *options, **more)
        if (cache / "a").exists():
            shutil.rmtree(plain)
            (cache / "a").rename(plain)
        return said

    def identify(folder: Path) -> tuple[int, ...]:
        found = identify_now(folder)
        if is_taken_again and folder != plain:  # moved away, so that a third process makes it
            (cache / "b").rename(plain)
        return found

    identify_now = places.identify
    monkeypatch.setattr(places, "find_damage", find_damage)
    monkeypatch.setattr(places, "identify", identify)
    made = (cache / ("b" if is_taken_again else "a") / "sums.json").stat().st_ino
    assert places.is_whole(plain, ["image"])
    assert (plain / "sums.json").stat().st_ino == made
    assert not caplog.messages
    assert not list(plain.parent.glob(".removed-*"))


def test_nothing_is_quantized_from_damaged_weights(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, quantized = models(cache)
    before = bytes_of(quantized)
    zero_middle(plain / "visual.onnx.data")
    shutil.rmtree(quantized)
    open_model("bulk", "int8")
    assert bytes_of(quantized) == before
    assert "visual.onnx.data is damaged" in caplog.text


def test_a_damaged_model_in_int8_is_made_again(cache: Path) -> None:
    _, quantized = models(cache)
    before = bytes_of(quantized)
    zero_middle(quantized / "textual.onnx.data")
    open_model("bulk", "int8").encode_texts(["a dog"])
    assert bytes_of(quantized) == before


def test_a_file_in_the_place_of_a_model_makes_room(cache: Path) -> None:
    plain, _ = models(cache)
    shutil.rmtree(plain)
    plain.write_bytes(b"")
    assert isinstance(open_model(), OnnxEncoder)
    assert (plain / "model.json").is_file()


def test_weights_are_read_again_where_something_says_that_they_may_be_others(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, _ = models(cache)
    monkeypatch.setattr(onnx_sums, "SMALL_BYTES", 100_000)
    (tmp_path / "boot_id").write_text("one")
    monkeypatch.setattr(onnx_sums, "BOOT_ID", tmp_path / "boot_id")
    read = list[str]()

    def files_read() -> list[str]:
        read.clear()
        assert onnx_sums.find_damage(plain, ["image"], is_own=True) is None
        return [name for name in read if name.endswith(".data")]

    real = onnx_sums.sum_path

    def sum_path(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(onnx_sums, "sum_path", sum_path)
    assert files_read() == ["visual.onnx.data"]
    assert files_read() == []
    os.utime(plain / "visual.onnx.data")
    assert files_read() == ["visual.onnx.data"]
    (tmp_path / "boot_id").write_text("two")
    assert files_read() == ["visual.onnx.data"]
    assert files_read() == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    assert files_read() == ["visual.onnx.data"]
    assert files_read() == []
    (note,) = (cache / "compared").iterdir()
    for damage in WAYS:
        damage(note)
        assert files_read() == ["visual.onnx.data"], damage
        assert files_read() == []
    zero_middle(plain / "visual.onnx.data")
    assert "its checksum differs" in (onnx_sums.find_damage(plain, ["image"], is_own=True) or "")


@pytest.mark.parametrize("damage", WAYS[:-1])
@pytest.mark.parametrize("file", ["visual.onnx", "visual.onnx.data", "sums.json", "vocabulary.txt"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_damaged_folder_of_a_user_is_named(
    cache: Path, damage: Callable[[Path], None], file: str, runtime: str
) -> None:
    plain, _ = models(cache)
    damage(plain / file)
    with pytest.raises(EncoderError, match=rf"{file}.*; convert the model again$"):
        load_encoder(f"onnx:{plain}?runtime={runtime}").encode_images(PIXELS)


def test_a_user_may_edit_model_json_and_take_files_away(cache: Path) -> None:
    plain, _ = models(cache)
    said = (plain / "model.json").read_text()
    (plain / "model.json").write_text(said.replace('"source": "', '"source": "my own '))
    (plain / "vocabulary.txt").unlink()
    assert load_encoder(f"onnx:{plain}").encode_images(PIXELS).shape == (3, 128)
    (plain / "sums.json").unlink()
    zero_middle(plain / "visual.onnx.data")  # without checksums nothing shows it
    load_encoder(f"onnx:{plain}").encode_images(PIXELS)


@pytest.mark.parametrize("damage", WAYS[1:])
def test_openvino_says_why_it_cannot_open_a_graph(cache: Path, damage: Callable[[Path], None]) -> None:
    plain, _ = models(cache)
    (plain / "sums.json").unlink()
    damage(plain / "visual.onnx.data")
    with pytest.raises(EncoderError, match=r"visual\.onnx cannot be opened by OpenVINO: .*visual\.onnx\.data"):
        load_encoder(f"onnx:{plain}?runtime=openvino").encode_images(PIXELS)


def test_words_that_are_no_text_are_named(cache: Path) -> None:
    plain, _ = models(cache)
    (plain / "sums.json").unlink()
    (plain / "vocabulary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(EncoderError, match=r"vocabulary\.txt holds no words"):
        load_encoder(f"onnx:{plain}")
    write_garbage(plain / "model.json")
    with pytest.raises(EncoderError, match=r"model\.json is not valid JSON"):
        load_encoder(f"onnx:{plain}")
