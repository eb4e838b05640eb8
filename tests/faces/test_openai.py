"""CLIP's usual Python names: what goes in, what shape comes out, and that it is the encoder's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip import image_transform
from PIL import Image

import clip_retrieval
from clip_retrieval import clip, load_encoder
from clip_retrieval.errors import EncoderError, ImageError

MODEL = "hash:16?size=32"


@pytest.fixture
def model() -> clip.Clip:
    return clip.Clip(load_encoder(MODEL), batch_size=2)


@pytest.fixture
def paths(tmp_path: Path, make_jpeg: Callable[[int], bytes]) -> list[Path]:
    found = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(found):
        path.write_bytes(make_jpeg(number))
    return found


def test_the_names_are_the_packages_too() -> None:
    assert clip_retrieval.load is clip.load
    assert clip_retrieval.tokenize is clip.tokenize
    assert clip_retrieval.available_models is clip.available_models
    assert {"ViT-B/32", "demo"} <= set(clip.available_models())


def test_load_gives_the_model_and_its_preprocessing(paths: list[Path]) -> None:
    model, preprocess = clip.load("demo", "cpu")
    ready = preprocess(Image.open(paths[0]))
    assert ready.shape == (3, 64, 64)
    assert ready.dtype == np.float32
    row = model.encode_image(ready, normalize=True)
    assert row.shape == (128,)
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
    pixels = preprocess.pixels(paths[0])
    np.testing.assert_allclose(row, load_encoder("demo").encode_images(pixels[None])[0], atol=1e-6)


def test_rows_have_the_length_that_the_model_gives_them_unless_one_is_asked_for(paths: list[Path]) -> None:
    model, _ = clip.load("demo", "cpu")
    for rows, units in (
        (model.encode_image(paths), model.encode_image(paths, normalize=True)),
        (model.encode_text(["a dog", "fire"]), model.encode_text(["a dog", "fire"], normalize=True)),
    ):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        assert (abs(lengths - 1) > 0.01).all()
        np.testing.assert_allclose(rows / lengths, units, atol=1e-6)


def test_load_takes_openais_positions_and_warns_of_jit(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = clip.load("demo", "cpu", True)
    assert model.info.uri == "demo"
    assert "jit=True changes nothing" in caplog.text


def test_load_refuses_unknown_names() -> None:
    with pytest.raises(EncoderError, match="there is no model 'ViT-Z'"):
        clip.load("ViT-Z")


def test_a_picture_is_the_same_from_path_pillow_array_and_preprocessed(model: clip.Clip, paths: list[Path]) -> None:
    picture = Image.open(paths[0]).convert("RGB")
    ready, pixels = model.preprocess(picture), model.preprocess.pixels(picture)
    expected = model.encoder.encode_images(pixels[None])[0]
    for given in (paths[0], str(paths[0]), picture, np.array(picture), ready, pixels):
        row = model.encode_image(given)
        assert row.shape == (16,)
        np.testing.assert_array_equal(row, expected)


def test_lists_and_stacks_give_rows_in_their_order_across_batches(model: clip.Clip, paths: list[Path]) -> None:
    pixels = np.stack([model.preprocess.pixels(path) for path in paths])
    ready = np.stack([model.preprocess(path) for path in paths])
    expected = model.encoder.encode_images(pixels)
    for given in (paths, tuple(paths), pixels, ready, list(pixels), [paths[0], *ready[1:]]):
        np.testing.assert_allclose(model.encode_image(given), expected, atol=1e-6)
    assert model.encode_image([paths[0]]).shape == (1, 16)
    assert model.encode_image([]).shape == (0, 16)


@pytest.mark.parametrize("size", [(70, 50), (50, 71), (32, 32), (20, 9)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_pictures_of_every_mode_and_shape_become_what_the_reference_makes_of_them(
    model: clip.Clip, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    picture = Image.fromarray(colors)
    picture = picture.convert("RGB").quantize(9) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "picture.tiff")
    half = (0.5, 0.5, 0.5)
    expected = image_transform(32, is_train=False, mean=half, std=half)(picture).numpy()
    np.testing.assert_allclose(model.preprocess(picture), expected, atol=1e-6)
    np.testing.assert_allclose(model.preprocess(tmp_path / "picture.tiff"), expected, atol=1e-6)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), 7])
def test_what_is_no_picture_is_one_sentence(model: clip.Clip, pixels: Any) -> None:
    with pytest.raises(EncoderError, match=r"^expected a picture: a path, a PIL picture, uint8 pixels \[h, w, 3\] or "):
        model.encode_image(pixels)


def test_scaled_pictures_of_another_size_are_refused(model: clip.Clip) -> None:
    with pytest.raises(EncoderError, match=r"expected scaled pictures \[3, 32, 32\], got \[8, 8, 3\]"):
        model.encode_image(np.zeros((8, 8, 3), np.float32))


def test_scaled_values_that_no_8_bit_picture_gives_are_refused_where_only_graphs_are(model: clip.Clip) -> None:
    with pytest.raises(EncoderError, match="takes only 8-bit pictures, and these values are not"):
        model.encode_image(np.full((1, 3, 32, 32), 0.123, np.float32))


def test_a_picture_that_cannot_be_read_is_named(model: clip.Clip, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone.jpg cannot be read: No such file or directory"):
        model.encode_image(tmp_path / "gone.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"bad.jpg cannot be used as a picture: no picture format recognised"):
        model.encode_image([tmp_path / "bad.jpg"])


def test_texts_one_or_many(model: clip.Clip) -> None:
    texts = ["a dog", "a cat", "a bird, flying"]
    expected = model.encoder.encode_texts(texts)
    np.testing.assert_array_equal(model.encode_text(texts), expected)
    np.testing.assert_array_equal(model.encode_text("a dog"), expected[0])
    assert model.encode_text([]).shape == (0, 16)


def test_tokens_are_the_texts_that_they_were() -> None:
    model, _ = clip.load("demo", "cpu")
    texts = ["a dog", "slice of pizza", "red heart"]
    expected = model.encode_text(texts)
    np.testing.assert_allclose(model.encode_text(clip.tokenize(texts)), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(clip.tokenize(texts)[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(model.encode_text(clip.tokenize(texts, 20)), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(clip.tokenize(texts, 90)), expected, atol=1e-5)
    with pytest.raises(EncoderError, match=r"longer than the 77 that demo takes; make them with tokenize\(texts, con"):
        model.encode_text(np.ones((1, 78), np.int32))
    with pytest.raises(EncoderError, match=r"^token ids are whole numbers \[n, t\], not float64 \[1, 77\]$"):
        model.encode_text(np.ones((1, 77)))


def test_tokens_of_clip_are_refused_by_a_model_with_another_tokenizer(model: clip.Clip) -> None:
    class Stub:
        """An encoder with another vocabulary."""

        info = model.info
        is_raw = False
        encode_images, encode_texts = model.encoder.encode_images, model.encoder.encode_texts
        embed_texts = model.encoder.embed_texts
        encode_tokens, start_images = model.encoder.encode_tokens, model.encoder.start_images

        class Tokenizer:
            context_length = 8

            def __call__(self, texts: list[str]) -> np.ndarray[Any, Any]:
                return np.ones((len(texts), 8), np.int32)

        tokenizer = Tokenizer()

    with pytest.raises(EncoderError, match=r"has a tokenizer of its own; give encode_text the texts themselves"):
        clip.Clip(Stub()).encode_text(clip.tokenize("a dog"))


def test_tokenize_is_openais() -> None:
    rows = clip.tokenize(["a dog", "cat"])
    assert rows.shape == (2, 77)
    assert rows.dtype == np.int32
    assert rows[0, :5].tolist() == [49406, 320, 1929, 49407, 0]
    assert clip.tokenize("a dog").shape == (1, 77)
    assert not rows[:, 4:].any()


def test_a_text_that_is_too_long_is_refused_or_cut() -> None:
    with pytest.raises(EncoderError) as caught:
        clip.tokenize(["cat", "dog " * 80])
    assert str(caught.value) == (
        f"{('dog ' * 80)[:60]!r} takes 82 tokens, and there is room for 77; shorten it, or give truncate=True"
    )
    cut = clip.tokenize("dog " * 80, truncate=True)
    assert (cut[0, 0], cut[0, -1], (cut == 0).sum()) == (49406, 49407, 0)
    assert clip.tokenize("dog " * 75).shape == (1, 77)
    with pytest.raises(EncoderError, match="context_length must be at least 3, not 2"):
        clip.tokenize("a", context_length=2)


def test_a_call_gives_logits_per_picture_and_per_text(model: clip.Clip, paths: list[Path]) -> None:
    texts = ["a dog", "a cat"]
    per_image, per_text = model(paths[:3], texts)
    cosine = model.encode_image(paths[:3], normalize=True) @ model.encode_text(texts, normalize=True).T
    np.testing.assert_allclose(per_image, 100 * cosine, rtol=1e-5)
    np.testing.assert_array_equal(per_text, per_image.T)
    assert per_image.dtype == np.float32
    np.testing.assert_allclose(model.similarity(paths[:3], texts), cosine, atol=1e-6)
    assert model(paths[0], "a dog")[0].shape == (1, 1)


def test_logits_of_a_model_with_a_bias_have_it(model: clip.Clip, paths: list[Path]) -> None:
    cosine = model.similarity(paths[:1], ["a dog"])
    model.encoder.info = replace(model.info, logit_scale=10.0, logit_bias=-5.0)
    np.testing.assert_allclose(model(paths[:1], ["a dog"])[0], 10 * cosine - 5, rtol=1e-5)


def test_the_helpers_of_clip_cpp(model: clip.Clip, paths: list[Path]) -> None:
    labels = ["dog", "cat", "bird", "fish"]
    cosine = model.similarity(paths[0], labels)[0]
    assert model.compare_text_and_image("cat", paths[0]) == pytest.approx(float(cosine[1]), abs=1e-6)
    scores, indices = model.zero_shot_label_image(paths[0], labels)
    assert indices.tolist() == np.argsort(-cosine).tolist()
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert scores.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(EncoderError, match="takes a list of labels"):
        model.zero_shot_label_image(paths[0], "dog")
    with pytest.raises(EncoderError, match="takes one picture, not 2"):
        model.zero_shot_label_image(paths[:2], labels)
