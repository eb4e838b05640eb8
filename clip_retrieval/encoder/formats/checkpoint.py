"""A CLIP in open_clip's terms, read from a file of any format. Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

Family = Literal["clip", "mixer"]

FINGERPRINT_VALUES = 4096  # values hashed per tensor, evenly spaced: enough to tell any two trainings apart
NO_WEIGHTS = ("logit_scale", "num_batches_tracked")  # endings of names that no tower computes with
UNTRAINED_LOGIT_SCALE = math.log(1 / 0.07)  # open_clip's initial value


@dataclass(frozen=True)
class Checkpoint:
    """Configuration, tensors and preprocessing of one model."""

    source: str  # the file or folder
    family: Family
    model_config: Mapping[str, Any]  # open_clip's model_cfg: embed_dim, vision_cfg, text_cfg, quick_gelu
    tensors: Mapping[str, NDArray[Any]]  # names and shapes of open_clip.CLIP's state_dict; may be memory maps
    preprocess: Preprocess

    @property
    def has_image(self) -> bool:
        return any(name.startswith("visual.") for name in self.tensors)

    @property
    def has_text(self) -> bool:
        return "token_embedding.weight" in self.tensors

    @property
    def towers(self) -> tuple[str, ...]:
        present = {"image": self.has_image, "text": self.has_text}
        return tuple(tower for tower, is_there in present.items() if is_there)

    @property
    def logit_scale(self) -> float | None:
        """The factor from cosine to logit: files hold its logarithm, or nothing."""
        return math.exp(float(self.tensors["logit_scale"])) if "logit_scale" in self.tensors else None

    @property
    def context_length(self) -> int:
        """The tokens of a text; CLIP's usual number if there is no text tower."""
        config = self.model_config if self.family == "mixer" else self.model_config.get("text_cfg", {})
        return int(config.get("context_length", 77))

    def fingerprint(self) -> str:
        """Return the digest that `engines.openclip.fingerprint` gives for a module with these weights."""
        is_quick = self.family == "clip" and self.model_config.get("quick_gelu")
        digest = hashlib.sha256(b"quick_gelu" if is_quick else b"")
        tensors: Mapping[str, Any] = self.tensors
        if self.family == "clip" and "logit_scale" not in tensors:
            tensors = {**dict.fromkeys(tensors), "logit_scale": np.array(UNTRAINED_LOGIT_SCALE)}
        for name in sorted(tensors):
            if name.endswith("num_batches_tracked"):  # a count of training steps, not a weight
                continue
            array = self.tensors[name] if name in self.tensors else tensors[name]
            digest.update(f"{name} {tuple(array.shape)}".encode())
            flat = np.reshape(array, -1)
            sample = flat[:: max(1, flat.size // FINGERPRINT_VALUES)]
            digest.update(np.ascontiguousarray(sample, dtype=np.float32).tobytes())
        return digest.hexdigest()[:32]


def check_attention(checkpoint: Checkpoint, form: str) -> None:
    """Raise EncoderError for a Mixer CLIP, whose towers only ONNX can express."""
    if checkpoint.family == "mixer":
        raise EncoderError(
            f"{checkpoint.source} is a Mixer CLIP, for which {form} has no form; write it with --to onnx"
        )
