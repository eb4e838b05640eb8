"""The torch engine on a GPU compared with itself on the CPU. Skipped without one."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clip_retrieval.encoder.base import Pixels
from clip_retrieval.encoder.config import EncoderConfig, Precision
from clip_retrieval.encoder.devices import allocate_pixels
from clip_retrieval.encoder.engines.gpu import Streams
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import parse_uri

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
MODEL = "random:ViT-S-32"
TEXTS = [f"{'very ' * (i % 9)}red thing {i}" for i in range(700)]
ROOM = 700_000_000  # bytes: holds the model and 64 pictures, not 2,048


def open_on_gpu(precision: Precision = "auto") -> OpenClipEncoder:
    encoder = load_encoder(EncoderConfig(clip_model=MODEL, device="cuda:0", precision=precision), workload="bulk")
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def most_of(encoder: OpenClipEncoder) -> int | None:
    return encoder.memory.most


def noise(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


@pytest.fixture
def little_memory() -> Iterator[None]:
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(0)  # cuBLAS keeps 32 MB for each stream that earlier tests used
    torch.cuda.set_per_process_memory_fraction((held + ROOM) / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(("precision", "least"), [("auto", 0.999), ("fp32", 0.9999), ("fp16", 0.999), ("bf16", 0.99)])
def test_a_gpu_gives_what_the_cpu_gives(precision: Precision, least: float) -> None:
    pixels = allocate_pixels((37, 224, 224, 3), "cuda")
    pixels[:] = noise(37)
    cpu = open_engine(parse_uri(MODEL), EncoderConfig(clip_model=MODEL, device="cpu"))
    gpu = open_on_gpu(precision)
    assert (gpu.encode_images(pixels) * cpu.encode_images(pixels)).sum(axis=1).min() > least
    assert (gpu.encode_texts(TEXTS[:70]) * cpu.encode_texts(TEXTS[:70])).sum(axis=1).min() > least


def test_captions_in_any_company_give_the_same() -> None:
    gpu = open_on_gpu()
    alone = np.concatenate([gpu.encode_texts(TEXTS[i : i + 7]) for i in range(0, len(TEXTS), 7)])
    assert (gpu.encode_texts(TEXTS) * alone).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("is_recorded", [False, True])
def test_batches_that_overlap_do_not_disturb_each_other(is_recorded: bool) -> None:
    gpu = open_on_gpu()
    batches = [noise(size, seed) for seed, size in enumerate([3, *[16] * 20, 5])]
    alone = [gpu.encode_images(batch) for batch in batches]
    if is_recorded:
        gpu.expect_batches(16)
        assert len(gpu.streams.graphs) == 2
    started = [gpu.start_images(batch) for batch in batches]
    for first, results in zip(alone, started, strict=True):
        np.testing.assert_allclose(first, results(), atol=1e-3)


def test_page_locked_memory_is_ordinary_memory_to_numpy() -> None:
    pixels = allocate_pixels((4, 8, 8, 3), "cuda")
    pixels[:] = 7
    assert torch.from_numpy(pixels).is_pinned()
    assert int(pixels.sum()) == 7 * pixels.size


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("is_started", [False, True])
def test_batches_that_do_not_fit_are_encoded_in_parts(is_started: bool) -> None:
    gpu = open_on_gpu()
    pixels = noise(2048)
    expected = np.concatenate([gpu.encode_images(pixels[i : i + 64]) for i in range(0, 2048, 64)])
    assert most_of(gpu) is None
    gpu.expect_batches(2048)
    assert not gpu.streams.graphs
    for _ in range(3):
        found = gpu.start_images(pixels)() if is_started else gpu.encode_images(pixels)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert 64 <= (most_of(gpu) or 0) < 2048


def test_a_model_that_cannot_be_recorded_runs_as_it_is() -> None:
    streams = Streams(torch.device("cuda:0"))

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().sum(dim=(1, 2, 3)) / float(pixels.float().max().item() + 1)  # waits for the GPU

    streams.record(encode, (4, 8, 8, 3))
    assert not streams.graphs
    pixels = torch.full((4, 8, 8, 3), 3, dtype=torch.uint8)
    assert streams.start(encode, pixels)().tolist() == [144.0] * 4
