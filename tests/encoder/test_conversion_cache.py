from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clip_retrieval.encoder import conversion_cache as converted
from clip_retrieval.encoder import converted_places as places_of
from clip_retrieval.encoder import precision as machine
from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.config import EncoderConfig, Precision
from clip_retrieval.encoder.engines.onnx import OnnxEncoder
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.export.convert import convert_into, open_torch
from clip_retrieval.encoder.formats.onnx_folder import read_about
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.precision import cpu_precisions
from clip_retrieval.encoder.uri import DEMO_MODEL, parse_uri
from clip_retrieval.errors import EncoderError

pytest.importorskip("openvino")

MODEL = f"open_clip:local-dir:{DEMO_MODEL}"  # a model of torch, and a small one
TEXTS = ["a dog", "", "a slice of pizza on a plate", *(f"{'very ' * (i % 11)}red thing {i}" for i in range(70))]
PIXELS = np.random.default_rng(0).integers(0, 256, (37, 64, 64, 3), dtype=np.uint8)


def open_bulk(precision: Precision = "auto", model: str = MODEL) -> Encoder:
    return load_encoder(EncoderConfig(clip_model=model, precision=precision, device="cpu"), workload="bulk")


@pytest.fixture(scope="module")
def reference() -> Encoder:
    return open_engine(parse_uri(MODEL), EncoderConfig(clip_model=MODEL, device="cpu"))


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999), ("int8", 0.999), ("auto", 0.999)])
def test_bulk_work_gives_what_torch_gives(reference: Encoder, precision: Precision, least: float) -> None:
    encoder = open_bulk(precision)
    assert isinstance(encoder, OnnxEncoder)
    assert (encoder.info.fingerprint, encoder.info.uri) == (reference.info.fingerprint, MODEL)
    assert encoder.info.precision == (cpu_precisions()[0] if precision == "auto" else precision)
    assert (encoder.encode_images(PIXELS) * reference.encode_images(PIXELS)).sum(axis=1).min() > least
    assert (encoder.encode_texts(TEXTS) * reference.encode_texts(TEXTS)).sum(axis=1).min() > least


def loads_torch(model: str, workload: str = "query", **environment: str) -> bool:
    """Say whether a fresh Python loads torch to encode a text with a model."""
    code = (
        "import sys\nfrom clip_retrieval import load_encoder\n"
        f"load_encoder({model!r}, workload={workload!r}).encode_texts(['a dog'])\nprint('torch' in sys.modules)"
    )
    all_of_it = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=all_of_it)
    return done.stdout.strip() == "True"


def test_a_query_takes_what_is_there_and_does_without_torch(tmp_path: Path) -> None:
    folder = tmp_path / "of-open-clip-alone"
    shutil.copytree(DEMO_MODEL, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["custom_text"] = True  # the same towers, in a class that only open_clip knows
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = f"open_clip:local-dir:{folder}"
    assert not isinstance(load_encoder(EncoderConfig(clip_model=model, device="cpu")), OnnxEncoder)
    open_bulk("fp32", model)
    assert not loads_torch(model)


@pytest.mark.parametrize("workload", ["query", "bulk"])
def test_a_plain_model_of_open_clip_never_needs_torch(tmp_path: Path, workload: str) -> None:
    assert not loads_torch(MODEL, workload, CLIP_RETRIEVAL_CACHE=str(tmp_path))
    assert list((tmp_path / "models").glob("*/textual.onnx"))


def test_graphs_are_the_same_whether_torch_has_read_the_weights_or_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    name = parse_uri(MODEL)
    light = converted.make_light(name, EncoderConfig(clip_model=MODEL, device="cpu"))
    assert light is not None
    convert_into(open_torch(name, None), tmp_path / "through-torch")
    for path in (tmp_path / "through-torch").iterdir():
        is_same = path.read_bytes() == (light / path.name).read_bytes()
        assert is_same or path.name in ("model.json", "sums.json"), path.name
    said, ours = (read_about(folder) for folder in (tmp_path / "through-torch", light))
    assert ours.logit_scale == pytest.approx(said.logit_scale)
    assert dataclasses.replace(ours, logit_scale=said.logit_scale) == said


def test_what_was_converted_is_not_converted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    open_bulk("fp32")
    monkeypatch.setattr(converted, "make", lambda *_: pytest.fail("it was there"))
    assert isinstance(open_bulk("fp32"), OnnxEncoder)


def test_another_file_under_the_same_name_is_another_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = "open_clip:RN50-quickgelu//" + str(tmp_path / "weights.pt")
    name = parse_uri(f"open_clip:local-dir:{DEMO_MODEL}")
    (tmp_path / "weights.pt").write_bytes(b"one")
    places = {places_of.place(parse_uri(model), EncoderConfig(), "fp32")}
    torch.save({}, tmp_path / "weights.pt")
    places |= {places_of.place(parse_uri(model), EncoderConfig(), precision) for precision in ("fp32", "int8")}
    places.add(places_of.place(name, EncoderConfig(), "fp32"))
    assert len(places) == 4


@pytest.mark.parametrize("model", ["hf_clip:org/name", "gguf:org/name/file.gguf", "open_clip:hf-hub:org/name"])
@pytest.mark.parametrize("is_named", [True, False])
def test_another_revision_in_the_hubs_cache_is_another_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, is_named: bool
) -> None:
    if not is_named:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = EncoderConfig(clip_cache_path=str(tmp_path) if is_named else None)
    main = tmp_path / "models--org--name" / "refs" / "main"
    main.parent.mkdir(parents=True)
    places = set()
    for time, commit in enumerate(("a" * 40, "b" * 40), start=1):
        main.write_text(commit)
        os.utime(main, (time, time))
        places.add(places_of.place(parse_uri(model), config, "fp32"))
    assert len(places) == 2


def test_another_file_of_openais_weights_is_another_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ViT-B-32.pt").write_bytes(b"weights")
        monkeypatch.setenv("CLIP_DIR", str(tmp_path / folder))
        places.add(places_of.place(parse_uri("ViT-B/32"), EncoderConfig(), "fp32"))
    assert len(places) == 2


def test_where_nothing_can_be_kept_torch_runs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(converted, "UNKEPT", set())
    caplog.set_level("INFO")
    encoder = open_bulk()
    assert not isinstance(encoder, OnnxEncoder)
    assert encoder.info.precision == "fp32"
    load_encoder(EncoderConfig(clip_model=MODEL, device="cpu"))
    (said,) = [record.message for record in caplog.records if record.name.startswith("clip_retrieval")]
    assert "runs on torch" in said
    assert f"takes longer: the cache {tmp_path / 'file'} cannot be written (it is a file); " in said


@pytest.fixture
def vnni(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let this machine's CPU have units for int8 (VNNI) and none for bfloat16."""
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512_vnni\n")
    monkeypatch.setattr(machine, "CPU_FLAGS", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.usefixtures("vnni")
@pytest.mark.parametrize("asked", ["auto", "int8"])
def test_where_nothing_can_be_kept_a_cpu_for_int8_runs_torch_in_fp32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: Precision
) -> None:
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", "/proc/nowhere")
    monkeypatch.setattr(converted, "UNKEPT", set())
    assert cpu_precisions() == ("int8", "fp32")
    encoders = [open_bulk(asked), open_bulk(asked)]
    assert [encoder.info.precision for encoder in encoders] == ["fp32", "fp32"]
    assert np.isfinite(encoders[0].encode_images(PIXELS[:1])).all()
    assert caplog.text.count("runs on torch in fp32") == 1  # the second does not try again


@pytest.mark.usefixtures("vnni")
def test_a_cpu_for_int8_takes_int8_where_it_can() -> None:
    assert open_bulk().info.precision == "int8"


def test_a_model_that_is_not_there_is_said_once() -> None:
    with pytest.raises(EncoderError, match="could not be fetched"):
        open_bulk(model="open_clip:ViT-B-32/openai")


def test_models_not_used_for_long_make_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(bytes(1000))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(places_of, "KEPT_BYTES", 2000)
    places_of.make_room(tmp_path / "old")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["middle", "new", "old"]
    places_of.make_room(tmp_path / "new")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["middle", "new"]
