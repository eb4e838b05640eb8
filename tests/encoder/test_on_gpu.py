"""The torch engine on a GPU beside itself on the CPU. Skipped without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_retrieval.encoder.config import EncoderConfig, Precision
from clip_retrieval.encoder.devices import allocate_pixels
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import parse_uri

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
MODEL = "random:ViT-S-32"
TEXTS = [f"{'very ' * (i % 9)}red thing {i}" for i in range(70)]


@pytest.mark.parametrize(("precision", "least"), [("auto", 0.999), ("fp32", 0.9999), ("fp16", 0.999)])
def test_a_gpu_gives_what_the_cpu_gives(precision: Precision, least: float) -> None:
    pixels = allocate_pixels((37, 224, 224, 3), "cuda")
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    cpu = open_engine(parse_uri(MODEL), EncoderConfig(clip_model=MODEL, device="cpu"))
    gpu = load_encoder(EncoderConfig(clip_model=MODEL, device="cuda:0", precision=precision), workload="bulk")
    assert (gpu.encode_images(pixels) * cpu.encode_images(pixels)).sum(axis=1).min() > least
    assert (gpu.encode_texts(TEXTS) * cpu.encode_texts(TEXTS)).sum(axis=1).min() > least


def test_batches_that_overlap_do_not_disturb_each_other() -> None:
    gpu = load_encoder(EncoderConfig(clip_model=MODEL, device="cuda:0"), workload="bulk")
    batches = [np.random.default_rng(i).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8) for i in range(20)]
    alone = [gpu.encode_images(batch) for batch in batches]
    started = [gpu.start_images(batch) for batch in batches]
    for first, results in zip(alone, started, strict=True):
        np.testing.assert_allclose(first, results(), atol=1e-3)


def test_page_locked_memory_is_ordinary_memory_to_numpy() -> None:
    pixels = allocate_pixels((4, 8, 8, 3), "cuda")
    pixels[:] = 7
    assert torch.from_numpy(pixels).is_pinned()
    assert int(pixels.sum()) == 7 * pixels.size
