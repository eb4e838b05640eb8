from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from clip_retrieval.encoder.export import traced
from clip_retrieval.encoder.export.traced import trace_towers
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS
from clip_retrieval.encoder.preprocess import Preprocess

PREPROCESS = Preprocess(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class BiasedAttention(nn.Module):
    """Attention with a separate bias for each pair of places, as with relative positions and in mT5."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(0, 1, 2 * 16 * 16).view(16, 16, 2))

    def encode_image(self, pixels: Tensor) -> Tensor:
        rows = pixels.flatten(2).transpose(1, 2).repeat(1, 1, 12)  # [n, places, channels]
        count, places, _ = rows.shape
        query, key, value = rows.reshape(count, places, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias.permute(2, 0, 1)[None]
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return found.transpose(1, 2).reshape(count, places, 12).mean(1)


def test_attention_with_a_bias_can_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused attention cannot ('Cannot view a tensor'): its rows have another order while it is traced."""
    tries, export = list[str](), traced.export_tower

    def count(*given: Any) -> None:
        tries.append("once")
        export(*given)

    monkeypatch.setattr(traced, "export_tower", count)
    trace_towers(BiasedAttention(), PREPROCESS, 8, tmp_path, ["image"])
    assert len(tries) == 2
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    (found,) = onnxruntime.InferenceSession(tmp_path / GRAPHS["image"]).run(None, {"pixels": pixels})
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
    assert found == pytest.approx(BiasedAttention().encode_image(scaled).detach().numpy(), abs=1e-5)
