"""clip.cpp's class Clip: its methods and signatures, on a GGUF file, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import write_gguf
from clip_retrieval.encoder.tokenizer import clip_vocabulary
from clip_retrieval.errors import ConfigError, EncoderError
from clip_retrieval.faces.clip_cpp import Clip, find_model
from clip_retrieval.faces.texts import TooManyTokensError
from clip_retrieval.process.resources import count_cores, use_cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Checkpoint]) -> Path:
    found = tmp_path_factory.mktemp("models")
    write_gguf(make_checkpoint(), found / "tiny_ggml-model-f32.gguf", clip_vocabulary(), dtype="f32")
    write_gguf(make_checkpoint(1), found / "tiny_ggml-model-f16.gguf", clip_vocabulary(), dtype="f16")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(found / "picture.png")
    return found


def test_the_example_of_its_readme(folder: Path) -> None:
    model = Clip(model_path_or_repo_id=str(folder / "tiny_ggml-model-f32.gguf"), model_file=None, verbosity=2)
    tokens = model.tokenize("a cat on a turtle")
    assert (tokens[0], tokens[-1], len(tokens)) == (49406, 49407, 7)
    text = model.encode_text(tokens)
    image = model.load_preprocess_encode_image(str(folder / "picture.png"))
    assert (type(text), type(text[0]), len(text), len(image)) == (list, float, 32, model.vec_dim)
    score = model.calculate_similarity(text, image)
    assert score == pytest.approx(model.compare_text_and_image("a cat on a turtle", str(folder / "picture.png")))
    assert np.linalg.norm(text) == pytest.approx(1, abs=1e-5)
    raw = model.encode_text(tokens, 1, False)
    assert abs(np.linalg.norm(raw) - 1) > 0.01
    np.testing.assert_allclose(np.array(raw) / np.linalg.norm(raw), text, atol=1e-5)


def test_mistakes_are_told_in_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    model = Clip(str(folder / "tiny_ggml-model-f32.gguf"))
    with pytest.raises(ConfigError, match=r"encode_text takes token ids: model.encode_text\(model.tokenize\(text\)\)"):
        model.encode_text("a dog")
    with pytest.raises(ConfigError, match="embeddings of 2 and 1 numbers are of different models"):
        model.calculate_similarity([1.0, 0.0], [1.0])
    with pytest.raises(ConfigError, match="model_file is a file of a folder or of a repository on the hub, and demo"):
        Clip("demo", model_file="x.gguf")


def test_its_configurations_have_the_names_of_clip_cpp(folder: Path) -> None:
    model = Clip(str(folder / "tiny_ggml-model-f32.gguf"))
    both = {"hidden_size": 64, "n_intermediate": 256, "projection_dim": 32, "n_head": 2, "n_layer": 2, "eps": 1e-5}
    assert model.text_config == {"n_vocab": 49408, "num_positions": 77, **both}
    assert model.vision_config == {"image_size": 64, "patch_size": 32, **both}
    with pytest.raises(EncoderError, match="demo does not describe its layers"):
        Clip("demo").text_config  # noqa: B018


def test_labels_come_sorted_with_their_places(folder: Path) -> None:
    model = Clip(str(folder / "tiny_ggml-model-f32.gguf"))
    picture, labels = str(folder / "picture.png"), ["dog", "cat", "bird"]
    scores, places = model.zero_shot_label_image(picture, labels, n_threads=2)
    cosines = [model.compare_text_and_image(label, picture) for label in labels]
    assert places == np.argsort(-np.array(cosines)).tolist()
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    for wrong in (["dog"], "dog"):
        with pytest.raises(ConfigError, match="give two or more"):
            model.zero_shot_label_image(picture, wrong)
    with pytest.raises(TooManyTokensError):
        model.tokenize("dog " * 90)


def test_a_folder_gives_the_file_that_is_named_or_the_smallest(folder: Path) -> None:
    assert find_model(str(folder), "tiny_ggml-model-f32.gguf", None).endswith("f32.gguf")
    assert find_model(str(folder), None, None).endswith("f16.gguf")
    assert find_model("mys/tiny", None, None) == "gguf:mys/tiny"
    assert find_model("mys/tiny", "a.gguf", "main") == "gguf:mys/tiny/a.gguf@main"
    assert find_model("demo", None, None) == "demo"


def test_threads_are_those_that_are_asked_for(folder: Path) -> None:
    model = Clip(str(folder / "tiny_ggml-model-f32.gguf"))
    before = count_cores()
    for count in (1, 2):
        model.encode_text(model.tokenize("a dog"), n_threads=count)
        session = model.on_cores(count).encoder.text_session.session.session  # type: ignore[attr-defined]
        assert session.get_session_options().intra_op_num_threads == count
    assert count_cores() == before
    with pytest.raises(ConfigError, match="at least 1, not -1"), use_cores(-1):
        pass


@pytest.mark.parametrize("file", ["", "/tiny_ggml-model-f32.gguf"])
def test_a_name_of_the_hub_is_taken_from_its_cache_without_torch(tmp_path: Path, folder: Path, file: str) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--mys--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    code = (
        "from clip_retrieval.faces.clip_cpp import Clip\n"
        f"print(len(Clip('gguf:mys/tiny{file}').encode_text([49406, 320, 49407])))\n"
        "import sys; print('torch' in sys.modules)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("32\nFalse", "")
