"""Which models of open_clip are read without it, and which are left to it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_retrieval.encoder.conversion_cache import read_light
from clip_retrieval.encoder.engines.openclip_model import check_architecture
from clip_retrieval.encoder.export.towers import is_buildable
from clip_retrieval.encoder.formats.openclip_hub import QUICK, read_architecture
from clip_retrieval.encoder.formats.openclip_reader import PLAIN, read_openclip
from clip_retrieval.encoder.uri import DEMO_MODEL, ModelName, parse_uri
from clip_retrieval.errors import EncoderError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    edit(config)
    (folder / CONFIG).write_text(json.dumps(config))


def test_a_folder_says_what_its_model_is(folder: Path) -> None:
    said = json.loads((folder / CONFIG).read_text())
    change(folder, lambda config: config["preprocess_cfg"].update(size=99))  # open_clip takes the model's
    found = read_openclip(parse_uri(f"open_clip:local-dir:{folder}"), None)
    assert found is not None
    assert is_buildable(found)
    assert found.towers == ("image", "text")
    assert found.preprocess.size == said["model_cfg"]["vision_cfg"]["image_size"]
    assert found.preprocess.mean == tuple(said["preprocess_cfg"]["mean"])


def test_a_name_may_say_how_pictures_are_prepared(folder: Path) -> None:
    found = read_openclip(ModelName("x", "open_clip", f"local-dir:{folder}", pictures=(("std", (1, 2, 3)),)), None)
    assert found is not None
    assert found.preprocess.std == (1, 2, 3)


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: config["model_cfg"].update(custom_text=True),
        lambda config: config["model_cfg"].update(embed_dim=7),
        lambda config: config["model_cfg"]["text_cfg"].update(width=9),
        lambda config: config["model_cfg"]["text_cfg"].pop("context_length"),
        lambda config: config["model_cfg"]["vision_cfg"].update(image_size=999),
    ],
)
def test_another_kind_of_model_or_other_sizes_are_left_to_open_clip(
    folder: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    change(folder, edit)
    assert read_openclip(parse_uri(f"open_clip:local-dir:{folder}"), None) is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors.update(logit_bias=np.zeros((), np.float32)),
        lambda tensors: tensors.update(logit_scale=np.ones(1, np.float32)),
        lambda tensors: tensors.pop("logit_scale"),
        lambda tensors: tensors.pop("text_projection"),
    ],
)
def test_tensors_that_open_clip_would_change_or_refuse_are_left_to_it(
    folder: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = {name: np.array(value) for name, value in load_file(path).items()}
    path.unlink()
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    assert read_openclip(parse_uri(f"open_clip:local-dir:{folder}"), None) is None


@pytest.mark.parametrize(
    ("left", "problem"),
    [
        (None, f"has no weights, neither {WEIGHTS} nor"), (0, "cut off within its header"),
        (100, "cut off within its header"), (-1, "is cut off: "),
    ],
)  # fmt: skip
def test_missing_and_cut_weights_are_told_at_once_however_the_model_is_opened(
    folder: Path, left: int | None, problem: str
) -> None:
    (path,) = folder.glob("*.safetensors")
    data = path.read_bytes()
    path.unlink()
    if left is not None:
        (folder / WEIGHTS).write_bytes(data[:left])
    name = parse_uri(f"open_clip:local-dir:{folder}")
    with pytest.raises(EncoderError) as light:
        read_light(name, None)
    with pytest.raises(EncoderError) as through_torch:
        check_architecture(name.architecture)
    assert str(light.value) == str(through_torch.value)
    assert str(light.value).startswith(str(folder))
    assert problem in str(light.value)


@pytest.mark.parametrize("architecture", ["ViT-L-14", "ViT-B-32", "no-such-architecture"])
def test_architectures_whose_files_do_not_say_enough_are_left_to_open_clip(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"logit_scale": np.zeros((), np.float32)}, path)
    for weights in (None, "no-such-tag", str(path)):
        assert read_openclip(ModelName("x", "open_clip", architecture, weights), str(tmp_path)) is None


@pytest.mark.parametrize("architecture", [*PLAIN, *(f"{name}{QUICK}" for name in PLAIN if name != "ViT-B-32-256")])
def test_open_clip_itself_would_take_files_of_these_architectures_as_they_are(
    tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_clip = pytest.importorskip("open_clip")
    published = pytest.importorskip("clip_retrieval.encoder.engines.openclip_published")

    (tmp_path / "weights.pt").write_bytes(b"weights")
    name = ModelName("x", "open_clip", architecture, str(tmp_path / "weights.pt"))
    with caplog.at_level(logging.INFO, "clip_retrieval"):
        assert published.resolve_weights(name, None) == name
        assert published.published_preprocess(name) in ({}, dict(published.USUAL))
    assert not caplog.records
    config = read_architecture(architecture)
    assert config == open_clip.get_model_config(architecture)
    assert config is not None
    assert config.get("quick_gelu", False) == architecture.endswith(QUICK)
