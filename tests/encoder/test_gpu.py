"""What a GPU needs, tried without one; tests/encoder/test_on_gpu.py runs with one."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer

from clip_retrieval.encoder.base import Embeddings, Pixels
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.devices import allocate_pixels
from clip_retrieval.encoder.engines.gpu import DeviceMemory, Patches, Streams, with_patches
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


def test_a_cpu_encodes_at_once() -> None:
    sizes: list[int] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return pixels.float()

    wait = Streams(torch.device("cpu")).start(encode, torch.ones(3, 1))
    assert sizes == [3]
    assert wait().tolist() == [[1.0]] * 3


def test_a_batch_that_does_not_fit_is_started_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_engine(parse_uri("random:ViT-S-32"), EncoderConfig(clip_model="random:ViT-S-32", device="cpu"))
    assert isinstance(encoder, OpenClipEncoder)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
    expected, whole = encoder.encode_images(pixels), encoder.features

    def features(part: torch.Tensor) -> torch.Tensor:
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError
        return whole(part)

    monkeypatch.setattr(encoder, "features", features)
    for _ in range(2):
        np.testing.assert_allclose(encoder.start_images(pixels)(), expected, atol=1e-5)
    assert encoder.memory.most == 1
    assert encoder.start_images(pixels[:0])().shape == (0, 384)


def build(name: str) -> tuple[torch.nn.Module, int]:
    """Return a small image tower and the side of its pictures."""
    if name == "open_clip":
        tower = VisionTransformer(
            image_size=40, patch_size=8, width=64, layers=1, heads=1, mlp_ratio=2.0, output_dim=16
        )
        return tower.eval(), 40
    return timm.create_model(name, pretrained=False, num_classes=0).eval(), 224


@pytest.mark.parametrize(
    ("name", "has_patches"), [("open_clip", True), ("vit_tiny_patch16_224", True), ("convnext_atto", False)]
)
def test_patches_as_one_product_give_the_same_features(name: str, has_patches: bool) -> None:
    tower, side = build(name)
    images = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    names = list(tower.state_dict())
    with torch.inference_mode():
        expected = tower(images)
        found = with_patches(tower)(images)
    assert any(isinstance(part, Patches) for part in tower.modules()) == has_patches
    assert list(tower.state_dict()) == names
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_patches_leave_out_what_is_no_whole_patch() -> None:
    convolution = torch.nn.Conv2d(3, 5, 14, 14, bias=False)
    images = torch.randn((2, 3, 50, 59), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Patches(convolution)(images), convolution(images), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_cannot_be_used_is_one_sentence() -> None:
    with pytest.raises(EncoderError, match="cuda:7 cannot be used: "):
        allocate_pixels((1, 2, 2, 3), "cuda:7")
