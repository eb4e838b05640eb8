"""Which devices there are; torch is only asked if there may be a GPU, since asking takes seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from clip_retrieval.encoder.base import Pixels
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError, first_line
from clip_retrieval.installed import is_installed

GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD


def list_devices(config: EncoderConfig) -> list[str]:
    """Return the devices that the config asks for, one worker each."""
    if config.device not in ("auto", "cuda"):
        return [device.strip() for device in config.device.split(",") if device.strip()]
    if not may_take_gpu(config) or (config.device == "auto" and not may_have_gpu()):
        return ["cpu"]
    if not is_installed("torch"):
        return ["cpu"]
    from clip_retrieval.encoder.engines.openclip import count_gpus

    count = count_gpus()
    return [f"cuda:{i}" for i in range(count)] or ["cuda" if config.device == "cuda" else "cpu"]


def may_take_gpu(config: EncoderConfig) -> bool:
    """Say whether the model runs on any GPU that a worker is given."""
    return config.device in ("auto", "cuda") and parse_uri(config.clip_model).kind not in ("hash", "onnx")


def is_on_cpu(config: EncoderConfig) -> bool:
    """Say whether a model of torch would run on the CPU."""
    return config.device.startswith("cpu") or (config.device == "auto" and not may_have_gpu())


def may_have_gpu() -> bool:
    """Say whether this machine may have a GPU that torch can use; on Linux without a driver's file it has none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return sys.platform != "linux" or any(Path(file).exists() for file in GPU_FILES)


def allocate_pixels(shape: tuple[int, int, int, int], device: str) -> Pixels:
    """Return room for pixels: for a GPU in page-locked memory, from which it copies asynchronously.

    Raises EncoderError if the GPU cannot be used.
    """
    if not device.startswith("cuda"):
        return np.empty(shape, dtype=np.uint8)
    import torch

    try:
        with torch.cuda.device(device):  # else the first GPU would hold a context of every worker
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise EncoderError(
            f"{device} cannot be used: {first_line(error)}; leave --device out to use what this machine has"
        ) from error
