"""Small random models with every bias and norm randomized, so that a dropped or swapped one shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
CONFIG: dict[str, Any] = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESS = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.27, 0.28], "size": 64}


def randomize(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            if not value.is_floating_point():
                continue
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            value.add_(noise.abs() if name.endswith("running_var") else noise)


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Give a function from changes of the configuration to an open_clip folder with random weights."""

    def write(*, name: str = "model", vision: Any = None, text: Any = None, **changes: Any) -> Path:
        vision_cfg = {**VISION, **vision} if vision is not None else VISION
        config = {**CONFIG, "vision_cfg": vision_cfg, "text_cfg": {**TEXT, **(text or {})}, **changes}
        torch.manual_seed(0)
        kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        model = kind(**config)
        randomize(model)
        folder = tmp_path / name
        folder.mkdir()
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
        if kind is open_clip.CustomTextCLIP:
            config["custom_text"] = True
        about = {"model_cfg": config, "preprocess_cfg": {**PREPROCESS, "size": vision_cfg["image_size"]}}
        (folder / "open_clip_config.json").write_text(json.dumps(about))
        return folder

    return write
