"""What a GPU needs, tried without one; tests/encoder/test_on_gpu.py runs where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_retrieval.encoder.base import Embeddings, Pixels
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.gpu import DeviceMemory, Streams, find_batch_size
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError

PIXELS = np.arange(100, dtype=np.uint8)[:, None, None, None]


def device_of(capacity: int) -> tuple[list[int], object]:
    """Return a list of the batches that were encoded, and an encoder whose memory holds `capacity` pictures."""
    sizes: list[int] = []

    def encode(part: Pixels) -> Embeddings:
        if len(part) > capacity:
            raise torch.cuda.OutOfMemoryError
        sizes.append(len(part))
        return part[:, 0, 0].astype(np.float32)

    return sizes, encode


@pytest.mark.parametrize(("capacity", "sizes"), [(100, [100]), (99, [50, 50]), (30, [25] * 4), (1, [1] * 100)])
def test_what_does_not_fit_is_encoded_in_halves(capacity: int, sizes: list[int]) -> None:
    found, encode = device_of(capacity)
    memory = DeviceMemory("a model")
    rows = np.concatenate(list(memory.in_parts(encode, PIXELS)))  # type: ignore[arg-type]
    assert (rows[:, 0] == np.arange(100)).all()
    assert found == sizes
    list(memory.in_parts(encode, PIXELS))  # type: ignore[arg-type]
    assert found == sizes * 2  # it remembers


def test_a_model_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(EncoderError, match="does not hold the model and one picture"):
        list(DeviceMemory("a model").in_parts(device_of(0)[1], PIXELS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capacity", "full_at", "expected"),
    [(10_000, 64, 64), (10_000, 512, 512), (10_000, 10_000, 2048), (300, 10_000, 256), (100, 10_000, 64), (40, 99, 32)],
)
def test_the_batch_size_is_where_more_brings_nothing(capacity: int, full_at: int, expected: int) -> None:
    """The device takes as long for one picture as for `full_at` at once."""
    now, memory = [0.0], DeviceMemory("a model")
    encode = device_of(capacity)[1]

    def run(pixels: Pixels) -> None:
        for part in memory.in_parts(encode, pixels):  # type: ignore[arg-type]
            now[0] += max(len(part), full_at)

    assert find_batch_size(run, memory, 1, clock=lambda: now[0]) == expected


def test_a_cpu_has_no_streams() -> None:
    with Streams(torch.device("cpu")).next() as stream:
        assert stream is None


def test_a_batch_that_does_not_fit_is_started_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_engine(parse_uri("random:ViT-S-32"), EncoderConfig(clip_model="random:ViT-S-32", device="cpu"))
    assert isinstance(encoder, OpenClipEncoder)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
    expected, whole = encoder.encode_images(pixels), encoder.features

    def features(part: Pixels) -> torch.Tensor:
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError
        return whole(part)

    monkeypatch.setattr(encoder, "features", features)
    for _ in range(2):
        np.testing.assert_allclose(encoder.start_images(pixels)(), expected, atol=1e-5)
    assert encoder.memory.most == 1
    assert encoder.start_images(pixels[:0])().shape == (0, 384)
