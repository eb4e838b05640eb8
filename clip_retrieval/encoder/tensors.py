"""Tensors of torch for callers that use it: torch is imported only if the caller has done so, or asks for a tensor."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError
from clip_retrieval.installed import need_full


def is_tensor(value: object) -> bool:
    """Say whether a value is a tensor; if torch was never imported, nothing is."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_torch_loaded() -> bool:
    return sys.modules.get("torch") is not None


def to_array(tensor: Any) -> NDArray[Any]:
    """Return the values of a tensor on any device; 16-bit floats as float32."""
    kept = tensor.detach().cpu()
    array: NDArray[Any] = (kept.float() if kept.is_floating_point() else kept).numpy()
    return array


def to_tensor(array: NDArray[Any]) -> Any:
    """Return a tensor on the CPU that shares the array's memory if it is writable; imports torch."""
    need_full("torch", "a tensor", EncoderError)
    import torch

    plain = np.asarray(array).view(np.ndarray)
    is_shareable = plain.flags.writeable and plain.flags.c_contiguous
    return torch.from_numpy(plain if is_shareable else np.array(plain, order="C"))
