"""The weight-free encoder: equal inputs, equal unit embeddings, nothing learned."""

from __future__ import annotations

import numpy as np

from clip_retrieval import load_encoder


def test_equal_inputs_have_equal_unit_embeddings() -> None:
    encoder, again = load_encoder("hash:16?size=32"), load_encoder("hash:16?size=32")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)

    images, texts = encoder.encode_images(pixels), encoder.encode_texts(["a", "b", "a"])

    assert images.shape == (5, 16)
    assert np.allclose(np.linalg.norm(images, axis=1), 1)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1)
    assert (images == again.encode_images(pixels)).all()
    assert (texts[0] == texts[2]).all()
    assert (texts[0] != texts[1]).any()


def test_another_seed_is_another_encoder() -> None:
    encoder, other = load_encoder("hash:16"), load_encoder("hash:16?seed=1")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)

    assert encoder.info.fingerprint != other.info.fingerprint
    assert (encoder.encode_images(pixels) != other.encode_images(pixels)).any()
    assert (encoder.encode_texts(["a"]) != other.encode_texts(["a"])).any()


def test_no_row_is_no_embedding() -> None:
    encoder = load_encoder("hash:16")

    assert encoder.encode_images(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 16)
    assert encoder.encode_texts([]).shape == (0, 16)
