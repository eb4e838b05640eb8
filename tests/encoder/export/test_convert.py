from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.export import convert
from clip_retrieval.encoder.export.compare import compare_towers
from clip_retrieval.encoder.export.config import ConvertConfig, QuantizeConfig, Target
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.export.quantize import run_quantize
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import ConfigError, EncoderError, StorageError
from clip_retrieval.storage import size_of

WriteModel = Callable[..., Path]
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 32, "patch_size": None}


def load(uri: object) -> Encoder:
    return load_encoder(EncoderConfig(clip_model=str(uri), device="cpu", precision="fp32"))


def to_onnx(source: Path, out: Path, **options: Any) -> Encoder:
    run_convert(ConvertConfig(source=str(source), out=str(out), to="onnx", **options))
    return load(out)


def assert_same(reference: Encoder, made: Encoder, error: float = 1e-5) -> None:
    found = compare_towers(reference, made)
    assert set(found) == set(made.info.towers)
    for agreement in found.values():
        assert agreement.largest_error < error
        assert agreement.count == 8  # batches of 1, 2 and 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": False},
        {"quick_gelu": False, "vision": {"act_kwargs": {"approximate": "tanh"}}},
        {"vision": {"mlp_ratio": 3.0}, "text": {"mlp_ratio": 2.0}},
        {"vision": {"norm_kwargs": {"eps": 1e-3}}},
        {"vision": {"head_width": 16}, "text": {"heads": 4}},
        {"vision": RESNET},
        {"text": {"context_length": 20}},
        {"text": {"pool_type": "eos", "eos_id": 49407}},
        {"custom_text": True},
    ],
    ids=str,
)
def test_an_onnx_graph_has_the_embeddings_of_its_model(
    tmp_path: Path, write_model: WriteModel, changes: dict[str, Any]
) -> None:
    source = write_model(**changes)
    made = to_onnx(source, tmp_path / "onnx")
    assert_same(load(source), made)
    graphs = "".join(
        (tmp_path / "onnx" / name).read_bytes().decode("latin-1") for name in ("visual.onnx", "textual.onnx")
    )
    assert "clip-retrieval" in graphs  # built here, not traced by torch


def test_a_siglip_is_traced_with_its_bias_and_pooling(
    tmp_path: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP's shape: attention pooling, a text tower that sees both ways and pools at its last token.

    No graph is built here for such a model, nor for one whose blocks scale what they add (ls_init_value).
    """
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=1))  # torch traces each block anew
    source = write_model(
        vision={
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "image_size": 160,
            "timm_proj": "none",
        },
        text={
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
            "ls_init_value": 0.5,
            "layers": 1,
            "context_length": 16,
        },
        embed_dim=64,
        custom_text=True,
        init_logit_bias=-10,
    )
    reference = load(source)
    made = to_onnx(source, tmp_path / "onnx")
    assert_same(reference, made, 1e-4)
    assert made.info.logit_bias == pytest.approx(reference.info.logit_bias)
    assert made.info.logit_bias is not None
    for graph in ("visual.onnx", "textual.onnx"):
        assert b"clip-retrieval" not in (tmp_path / "onnx" / graph).read_bytes()
    result = run_quantize(QuantizeConfig(source=str(tmp_path / "onnx"), out=str(tmp_path / "int8"), type="int8"))
    assert min(agreement.least_cosine for agreement in result.agreement.values()) > 0.995
    assert result.size_bytes < 0.6 * result.source_bytes


def test_the_folder_says_all_that_the_model_said(tmp_path: Path, write_model: WriteModel) -> None:
    source = write_model()
    reference, made = load(source), to_onnx(source, tmp_path / "onnx")
    assert made.info.fingerprint == reference.info.fingerprint
    assert made.info.preprocess == reference.info.preprocess
    assert made.info.dimension == 48
    assert made.info.logit_scale == pytest.approx(reference.info.logit_scale)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_token_table_stays_a_mapped_file(tmp_path: Path, write_model: WriteModel) -> None:
    """The table of 49,408 x 384 is 76 MB; a text needs only a few rows of it."""
    source = write_model(text={"width": 384, "heads": 6, "layers": 1})
    to_onnx(source, tmp_path / "text", text_only=True)
    code = (
        "import sys\nfrom clip_retrieval import load_encoder\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))\n"
        "load_encoder('demo').encode_texts(['a dog'])\nbefore = anonymous()\n"
        "load_encoder(sys.argv[1]).encode_texts(['a dog'])\nprint(anonymous() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "text")], capture_output=True, text=True, check=True
    )
    matrices = (tmp_path / "text" / "textual.onnx.data").stat().st_size / 1024 - 49408 * 384 * 4 / 1024
    assert int(done.stdout) < 1.5 * matrices + 10_000  # kB


def test_half_the_bytes_and_nearly_the_same_embeddings(tmp_path: Path, write_model: WriteModel) -> None:
    source = write_model()
    whole, half = to_onnx(source, tmp_path / "f32"), to_onnx(source, tmp_path / "f16", dtype="f16")
    size = {name: size_of(tmp_path / name) for name in ("f32", "f16")}
    assert size["f16"] < 0.6 * size["f32"]
    assert_same(whole, half, 0.02)


@pytest.mark.parametrize(
    ("option", "tower", "other"), [("text_only", "text", "visual"), ("image_only", "image", "textual")]
)
def test_one_tower_alone(tmp_path: Path, write_model: WriteModel, option: str, tower: str, other: str) -> None:
    made = to_onnx(write_model(), tmp_path / "onnx", **{option: True})
    assert made.info.towers == (tower,)
    assert not list((tmp_path / "onnx").glob(f"{other}*"))
    with pytest.raises(EncoderError, match=r"has no (text|image) encoder: it was saved without one"):
        made.encode_texts(["a"]) if tower == "image" else made.encode_images(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("target", ["open_clip", "hf", "gguf"])
def test_other_formats_have_the_embeddings_of_the_model(
    tmp_path: Path, write_model: WriteModel, target: Target
) -> None:
    source = write_model()
    result = run_convert(ConvertConfig(source=str(source), out=str(tmp_path / "out"), to=target))
    assert set(result.agreement) == {"image", "text"}
    assert result.size_bytes > 1_000_000
    found = compare_towers(load(source), load(tmp_path / "out"))
    assert min(agreement.least_cosine for agreement in found.values()) > (0.999 if target == "gguf" else 0.999999)


@pytest.mark.parametrize("target", ["onnx", "open_clip", "hf"])
def test_a_gguf_file_can_be_converted_too(tmp_path: Path, write_model: WriteModel, target: Target) -> None:
    run_convert(ConvertConfig(source=str(write_model()), out=str(tmp_path / "a.gguf"), to="gguf"))
    run_convert(ConvertConfig(source=str(tmp_path / "a.gguf"), out=str(tmp_path / "out"), to=target))
    assert_same(load(tmp_path / "a.gguf"), load(tmp_path / "out"))


def test_a_graph_that_differs_is_not_kept(
    tmp_path: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is real: a graph with the image tower's wrong activation is discarded."""
    source = write_model()
    describe = convert.open_origin

    def wrong(config: ConvertConfig) -> convert.Origin:
        origin = describe(config)
        assert origin.checkpoint is not None
        changed = dict(origin.checkpoint.model_config, quick_gelu=False)
        object.__setattr__(origin.checkpoint, "model_config", changed)
        return origin

    monkeypatch.setattr(convert, "open_origin", wrong)
    with pytest.raises(EncoderError, match=r"does not survive the conversion to onnx.* nothing was kept"):
        to_onnx(source, tmp_path / "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_lies_there_already_is_kept(tmp_path: Path, write_model: WriteModel) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        to_onnx(write_model(), tmp_path / "out")
    assert (tmp_path / "out" / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("hash:8", "onnx", "hash:8 has no weights to convert"),
        ("nowhere/model", "onnx", "there is no model 'nowhere/model'"),
    ],
)
def test_what_cannot_be_converted(tmp_path: Path, source: str, target: Target, sentence: str) -> None:
    with pytest.raises(EncoderError, match=sentence):
        run_convert(ConvertConfig(source=source, out=str(tmp_path / "out"), to=target))
    assert not list(tmp_path.iterdir())


def test_a_name_without_weights_is_refused_before_torch_is_loaded() -> None:
    code = (
        "import sys; from clip_retrieval.cli import run_command;"
        "sys.argv = ['', 'convert', 'hash:8', 'out', '--to', 'onnx'];"
        "print(run_command(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1 False\n", done.stderr
    assert "hash:8 has no weights to convert" in done.stderr


def test_an_onnx_folder_is_not_converted_again(tmp_path: Path, write_model: WriteModel) -> None:
    to_onnx(write_model(), tmp_path / "onnx")
    with pytest.raises(EncoderError, match="is ONNX already"):
        to_onnx(tmp_path / "onnx", tmp_path / "again")


def test_a_resnet_has_no_form_in_gguf(tmp_path: Path, write_model: WriteModel) -> None:
    with pytest.raises(EncoderError, match=r"clip\.cpp's GGUF has no place"):
        run_convert(ConvertConfig(source=str(write_model(vision=RESNET)), out=str(tmp_path / "out"), to="gguf"))


def test_both_towers_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        ConvertConfig(source="a", out="b", to="onnx", text_only=True, image_only=True)


def test_the_embedded_model_converts(tmp_path: Path) -> None:
    result = run_convert(ConvertConfig(source="demo", out=str(tmp_path / "out"), to="onnx"))
    assert json.loads((tmp_path / "out" / "model.json").read_text())["source"] == "demo"
    assert (tmp_path / "out" / "vocabulary.txt").exists()
    assert max(agreement.largest_error for agreement in result.agreement.values()) < 1e-5
