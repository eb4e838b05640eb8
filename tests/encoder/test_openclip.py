"""open_clip models: the same embeddings as open_clip's own, in every precision, without network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.config import EncoderConfig, Precision
from clip_retrieval.encoder.engines.openclip import to_rows, to_unit
from clip_retrieval.encoder.engines.openclip_model import fingerprint
from clip_retrieval.encoder.engines.state_dict import explain_loading, reading_more_files
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Register an architecture of a few layers; return its name."""
    path = tmp_path_factory.mktemp("config") / "tests-tiny.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    yield path.stem
    path.unlink()
    open_clip.factory._rescan_model_configs()


@pytest.fixture(scope="module")
def encoder(tiny: str) -> Encoder:
    return load_encoder(EncoderConfig(clip_model=f"random:{tiny}?seed=0", device="cpu", precision="fp32"))


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + i, 50 - i, 3), dtype=np.uint8)) for i in range(6)]


TEXTS = ["a dog", "a cat on a mat", "", "Ein Hund 🐕"]


def pixels_of(encoder: Encoder, pictures: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([encoder.info.preprocess(picture) for picture in pictures])


def test_embeddings_equal_those_of_a_plain_open_clip_loop(
    tiny: str, encoder: Encoder, pictures: list[Image.Image]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, _, transform = open_clip.create_model_and_transforms(tiny)
    model.eval()
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy()
        texts = model.encode_text(open_clip.get_tokenizer(tiny)(TEXTS), normalize=True).numpy()

    assert np.allclose(encoder.encode_images(pixels_of(encoder, pictures)), images, atol=1e-5)
    assert np.allclose(encoder.encode_texts(TEXTS), texts, atol=1e-5)


def test_rows_have_unit_length_and_the_dimension_of_the_model(encoder: Encoder, pictures: list[Image.Image]) -> None:
    images, texts = encoder.encode_images(pixels_of(encoder, pictures)), encoder.encode_texts(TEXTS)

    assert encoder.info.dimension == 24
    assert images.shape == (6, 24)
    assert images.dtype == texts.dtype == np.float32
    assert np.allclose(np.linalg.norm(np.vstack([images, texts]), axis=1), 1, atol=1e-6)


def test_a_seed_decides_the_weights(tiny: str, encoder: Encoder) -> None:
    again, other = load_encoder(f"random:{tiny}"), load_encoder(f"random:{tiny}?seed=1")

    assert again.info.fingerprint == encoder.info.fingerprint != other.info.fingerprint
    assert (again.encode_texts(TEXTS) == encoder.encode_texts(TEXTS)).all()
    assert not np.allclose(other.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=0.01)


def test_making_random_weights_leaves_the_random_state_of_the_caller(tiny: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    load_encoder(f"random:{tiny}?seed=1")

    assert (torch.rand(3) == expected).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_are_close_to_fp32(
    tiny: str, encoder: Encoder, pictures: list[Image.Image], precision: Precision
) -> None:
    half = load_encoder(EncoderConfig(clip_model=f"random:{tiny}", device="cpu", precision=precision))

    images, texts = half.encode_images(pixels_of(half, pictures)), half.encode_texts(TEXTS)

    assert (images * encoder.encode_images(pixels_of(encoder, pictures))).sum(axis=1).min() > 0.999
    assert (texts * encoder.encode_texts(TEXTS)).sum(axis=1).min() > 0.999
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    assert half.info.fingerprint == encoder.info.fingerprint
    assert (half.info.precision, encoder.info.precision) == (precision, "fp32")


def test_texts_that_are_cut_are_counted(tiny: str) -> None:
    encoder = load_encoder(f"random:{tiny}")

    found = encoder.embed_texts(["dog " * 10, "dog " * 11, "dog " * 99, "dog"])

    assert found.truncated_count == 2


@pytest.mark.parametrize("sizes", [(), ("input_resolution", "context_length", "vocab_size")])
def test_a_checkpoint_file_is_loaded(tiny: str, encoder: Encoder, tmp_path: Path, sizes: tuple[str, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = open_clip.create_model(tiny)
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict() | {name: torch.tensor(7) for name in sizes}, path)  # as OpenAI's archives have them

    loaded = load_encoder(f"open_clip:{tiny}/{path}")

    assert loaded.info.fingerprint == encoder.info.fingerprint


def test_a_folder_of_open_clip_is_loaded(tiny: str, encoder: Encoder, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = open_clip.create_model(tiny)
    preprocess = {"mean": [0.1] * 3, "std": [0.9] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")

    loaded = load_encoder(f"open_clip:local-dir:{tmp_path}")

    assert loaded.info.fingerprint == encoder.info.fingerprint
    assert loaded.info.preprocess.resize_mode == "squash"
    assert loaded.info.preprocess.interpolation == "bilinear"
    assert loaded.info.preprocess.mean == (0.1, 0.1, 0.1)
    given = load_encoder(f"open_clip:local-dir:{tmp_path}?mean=0&std=1,1,0.5").info.preprocess
    assert (given.mean, given.std, given.resize_mode) == ((0, 0, 0), (1, 1, 0.5), "squash")


def refusal(model: str, **options: Any) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(EncoderConfig(clip_model=model, **options))
    return str(caught.value)


@pytest.mark.parametrize("model", ["ViT-B/32", "open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:hf-hub:org/name"])
def test_weights_that_cannot_be_fetched_are_one_sentence_with_advice(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = refusal(model, clip_cache_path=str(tmp_path))

    assert message.startswith(f"the weights of {model} are not on this machine and could not be fetched")
    assert "--clip_model demo" in message
    assert "\n" not in message
    assert "Failed to" not in caplog.text


def test_an_unknown_architecture_is_refused_with_near_names() -> None:
    assert "near it: " in refusal("open_clip:ViT-B-33/openai")
    assert "has no architecture 'nonsense'" in refusal("random:nonsense")


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    message = refusal("open_clip:ViT-B-32/nonsense")

    assert "nonsense is neither a file nor a tag of ViT-B-32" in message
    assert "laion2b_s34b_b79k" in message


def test_a_file_that_is_no_checkpoint_is_refused(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"this is no checkpoint")

    assert f"{path} could not be loaded into {tiny}" in refusal(f"open_clip:{tiny}/{path}")


def test_a_file_that_cannot_be_opened_is_told_by_the_systems_reason(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.mkdir()

    with reading_more_files(), pytest.raises(IsADirectoryError) as caught:
        open_clip.factory.load_state_dict(str(path))

    assert explain_loading(caught.value) == f"{path}: Is a directory"


def test_a_checkpoint_of_another_architecture_is_refused(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"nothing": torch.zeros(1)}, path)

    message = refusal(f"open_clip:{tiny}/{path}")

    assert f"{path} could not be loaded into {tiny}" in message
    assert "\n" not in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_torch_compile_and_of_distributed_training_are_stripped(
    tiny: str, encoder: Encoder, tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "weights.pt"
    state = cast("Any", encoder).model.state_dict()
    torch.save({"epoch": 1, "state_dict": {prefix + name: value for name, value in state.items()}}, path)

    assert load_encoder(f"open_clip:{tiny}/{path}").info.fingerprint == encoder.info.fingerprint


def test_weights_that_do_not_fit_are_told_by_their_names_and_shapes(
    tiny: str, encoder: Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    state = dict(cast("Any", encoder).model.state_dict())
    state["visual.proj"] = torch.zeros(3, 3)
    del state["ln_final.weight"], state["ln_final.bias"]
    torch.save(state | {f"extra.{i}": torch.zeros(1) for i in range(5)}, path)

    message = refusal(f"open_clip:{tiny}/{path}")

    assert "2 tensors missing (ln_final.weight, ln_final.bias); 5 tensors unexpected (extra.0, extra.1, " in message
    assert "and 2 more); 1 of another shape, such as visual.proj ([3, 3]), where the model has (" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not valid JSON"),
        ("[" * 50_000, "nested too deeply"),
        ("[]", "expected `object`, got `array`"),
        ("{}", "missing required field `model_cfg`"),
        (
            '{"model_cfg": {"embed_dim": 1000000000000, "vision_cfg": {}, "text_cfg": {}}}',
            "model_cfg.embed_dim: expected",
        ),
        (
            '{"model_cfg": {"embed_dim": 32, "vision_cfg": [], "text_cfg": {}}}',
            "model_cfg.vision_cfg: expected `object`",
        ),
        (
            '{"model_cfg": {"embed_dim": 32, "vision_cfg": {"width": "768"}, "text_cfg": {}}}',
            "model_cfg.vision_cfg.width: expected `int`, got `str`",
        ),
        (
            '{"model_cfg": {"embed_dim": 32, "vision_cfg": {"layers": [1, 2]}, "text_cfg": {}}}',
            "model_cfg.vision_cfg.layers: expected `array` of length 4, got 2",
        ),
        (
            '{"model_cfg": {"embed_dim": 32, "vision_cfg": {}, "text_cfg": {"heads": 0}}}',
            "model_cfg.text_cfg.heads: expected `int` >= 1",
        ),
        (
            '{"model_cfg": {"embed_dim": 32, "vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {"mean": null}}',
            "mean",
        ),
    ],
)
def test_a_folder_whose_configuration_has_another_shape_is_refused(tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(config)

    message = refusal(f"open_clip:local-dir:{tmp_path}")

    assert f"{tmp_path}/open_clip_config.json" in message
    assert words in message


def test_git_lfs_pointers_in_a_folder_are_named(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    (tmp_path / "open_clip_pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")

    assert f"{tmp_path}/open_clip_pytorch_model.bin is a Git LFS pointer" in refusal(str(tmp_path))

    torch.save(cast("Any", encoder).model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "flax_model.msgpack").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert load_encoder(str(tmp_path)).info.fingerprint == encoder.info.fingerprint  # what is not read may be one


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "open_clip_config.json is missing" in refusal(f"open_clip:local-dir:{tmp_path}")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(tiny: str, device: str) -> None:
    message = refusal(f"random:{tiny}", device=device)

    assert f"device {device} cannot be used" in message
    assert "\n" not in message


def tiny_clip(**changes: Any) -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, **changes).eval()


def test_the_activation_is_part_of_the_fingerprint() -> None:
    plain, quick = tiny_clip(), tiny_clip(quick_gelu=True)
    quick.load_state_dict(plain.state_dict())
    assert fingerprint(plain) == fingerprint(tiny_clip())
    assert fingerprint(plain) != fingerprint(quick)


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    rows = torch.ones(3, 4)
    rows[1, 2] = float("nan")
    with pytest.raises(EncoderError, match="not numbers"):
        to_rows(to_unit(rows))
