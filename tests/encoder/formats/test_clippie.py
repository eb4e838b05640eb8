"""Clippie's .weights: written, read, refused, and loaded by Clippie itself if it is installed."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.clippie import read_clippie, write_clippie
from clip_retrieval.encoder.formats.recognize import read_checkpoint, recognize
from clip_retrieval.errors import EncoderError
from clip_retrieval.faces import clippie as face

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.mark.parametrize("width", [64, 128])
def test_a_file_gives_back_every_tensor_and_the_whole_configuration(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, width: int
) -> None:
    checkpoint = make_checkpoint(width=width)
    write_clippie(checkpoint, tmp_path / "tiny.weights")
    assert recognize(tmp_path / "tiny.weights") == "clippie"
    found = read_checkpoint(tmp_path / "tiny.weights")
    assert found.model_config["text_cfg"] == checkpoint.model_config["text_cfg"]
    assert found.model_config["vision_cfg"] == checkpoint.model_config["vision_cfg"]
    assert found.preprocess == checkpoint.preprocess
    assert found.tensors.keys() == checkpoint.tensors.keys() - {"logit_scale"}
    for name, array in found.tensors.items():
        np.testing.assert_array_equal(array, checkpoint.tensors[name])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its file open
def test_clippie_runs_our_file_and_we_run_what_it_writes(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    theirs, weightie = pytest.importorskip("clippie"), pytest.importorskip("weightie")
    checkpoint = make_checkpoint(width=64)
    heads = {
        "vision_cfg": {**checkpoint.model_config["vision_cfg"], "head_width": 64},
        "text_cfg": {**checkpoint.model_config["text_cfg"], "heads": 1},
    }
    write_clippie(replace(checkpoint, model_config={**checkpoint.model_config, **heads}), tmp_path / "ours.weights")
    weights = theirs.load(tmp_path / "ours.weights")
    with (tmp_path / "theirs.weights").open("wb") as file:
        weightie.dump(weights, file)
    texts = ["a dog", "two red apples on a table"]
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for i in (0, 1)]
    for name in ("ours", "theirs"):
        opened = face.load(tmp_path / f"{name}.weights")
        expected = theirs.encode_text(texts, weights.text_encoder)
        np.testing.assert_allclose(face.encode_text(texts, opened.text_encoder), expected, atol=1e-4)
        expected = theirs.encode_image(pictures, weights.image_encoder)
        np.testing.assert_allclose(face.encode_image(pictures, opened), expected, atol=1e-4)


def test_one_gives_a_vector_and_a_list_gives_rows(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    write_clippie(make_checkpoint(), tmp_path / "tiny.weights")
    weights = face.load(tmp_path / "tiny.weights")
    rows = face.encode_text(["a dog", "fire"], weights.text_encoder)
    assert (type(rows), rows.shape) == (np.ndarray, (2, 32))
    assert (abs(np.linalg.norm(rows, axis=1) - 1) > 0.01).all()
    np.testing.assert_allclose(face.encode_text("fire", weights), rows[1], atol=1e-5)
    picture = Image.new("RGB", (70, 64), (200, 10, 10))
    assert face.encode_image(picture, weights.image_encoder).shape == (32,)
    assert face.encode_image([picture, picture], weights.image_encoder).shape == (2, 32)
    with pytest.raises(face.TooManyTokensError, match="takes 92 tokens"):
        face.encode_text("dog " * 90, weights)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_a_pickle_that_asks_for_anything_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pickle.dumps(["clippie.model", Harmful()])
    (tmp_path / "bad.weights").write_bytes(bytes(64) + data + struct.pack("<I", len(data)))
    with pytest.raises(EncoderError, match=r"asks to run builtins\.print while loading; refused"):
        read_checkpoint(tmp_path / "bad.weights")
    assert capsys.readouterr().out == ""


def test_cut_and_broken_files_are_refused(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    write_clippie(make_checkpoint(), tmp_path / "tiny.weights")
    data = (tmp_path / "tiny.weights").read_bytes()
    length = int.from_bytes(data[-4:], "little")
    broken = {
        "cut": data[:-9],
        "no arrays": data[-4 - length :],
        "no heads": re.sub(
            rb"t\x81I\d+\nc", b"t\x81I0\nc", data
        ),  # between the first norm of a block and its attention
        "other fields": data.replace(b"clippie.model\nTextEncoderWeights", b"clippie.model\nImageEncoderWeights"),
    }
    for what, changed in broken.items():
        assert changed != data, what
        (tmp_path / "bad.weights").write_bytes(changed)
        with pytest.raises(EncoderError, match=r"bad\.weights is"):
            read_clippie(tmp_path / "bad.weights")


def test_an_incomplete_model_is_not_written(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    tensors = {name: array for name, array in checkpoint.tensors.items() if not name.startswith("visual.ln_pre.")}
    with pytest.raises(EncoderError, match=r"does not hold 'visual\.ln_pre\.weight', which Clippie's"):
        write_clippie(replace(checkpoint, tensors=tensors), tmp_path / "tiny.weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "odd"),
    [({"quick_gelu": False}, "QuickGELU"), ({"text_cfg": {"pool_type": "eos"}}, "another pooling")],
)
def test_what_clippie_would_compute_otherwise_is_refused(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, changes: dict[str, object], odd: str
) -> None:
    checkpoint = make_checkpoint()
    changed = replace(checkpoint, model_config={**checkpoint.model_config, **changes})
    with pytest.raises(EncoderError, match=odd):
        write_clippie(changed, tmp_path / "tiny.weights")
    assert not list(tmp_path.iterdir())
