"""A CLIP in open_clip's own terms, whatever file it was read from. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from clip_retrieval.encoder.preprocess import Preprocess

Family = Literal["clip", "mixer"]


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
