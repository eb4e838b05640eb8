"""The preprocessing of a CLIP folder of transformers: preprocessor_config.json, or processor_config.json."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.encoder.preprocess import Interpolation, Preprocess, ResizeMode
from clip_retrieval.errors import EncoderError
from clip_retrieval.json_files import check_shape, read_json

logger = logging.getLogger(__name__)

Size = int | dict[str, int | None]
Positive = Annotated[float, Meta(gt=0)]
RESAMPLES: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class ProcessorConfig:
    """preprocessor_config.json; null means absent, as in transformers."""

    size: Size | None = None
    crop_size: Size | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    rescale_factor: float | None = None
    resample: Literal[0, 2, 3] | None = None
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[Positive, Positive, Positive] | None = None


def read_preprocess(folder: Path, image_size: int) -> Preprocess:
    """Return what preprocessor_config.json says; OpenAI's preprocessing if there is none or it says null."""
    path = folder / "preprocessor_config.json"
    nested = folder / "processor_config.json"  # newer versions write one file for all processors
    said = read_object(path) if path.exists() else {}
    if not said and nested.exists():
        path, said = nested, read_object(nested).get("image_processor") or {}
    config = check_shape(said, ProcessorConfig, path, EncoderError)
    size = image_size if config.size is None else config.size
    crop = image_size if config.crop_size is None else config.crop_size
    mode: ResizeMode = "squash" if isinstance(size, dict) and size.get("height") is not None else "shortest"
    target = side(path, crop if mode == "shortest" and config.do_center_crop is not False else size)
    if target != image_size:
        raise EncoderError(f"{path} makes pictures of {target} pixels, but the model takes {image_size}")
    if side(path, size) != target:
        logger.warning(
            "%s resizes to %s pixels before it crops to %s; here both are %s", path, side(path, size), target, target
        )
    if config.do_rescale is False or not math.isclose(config.rescale_factor or 1 / 255, 1 / 255, rel_tol=1e-3):
        raise EncoderError(f"{path} does not rescale pixels by 1/255, which is what the encoders here do")
    is_plain = config.do_normalize is False
    return Preprocess(
        size=image_size,
        mean=(0, 0, 0) if is_plain else config.image_mean or MEAN,
        std=(1, 1, 1) if is_plain else config.image_std or STD,
        interpolation=RESAMPLES[3 if config.resample is None else config.resample],
        resize_mode=mode,
    )


def side(path: Path, size: Size) -> int:
    """Return the side of a square given as a number, {"shortest_edge": n} or {"height": n, "width": n}."""
    if isinstance(size, int):
        return size
    found = next((size[key] for key in ("shortest_edge", "height") if size.get(key) is not None), None)
    if found is None:
        raise EncoderError(f"{path} gives a size with neither shortest_edge nor height: {dict(size)}")
    return found


def read_object(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any], EncoderError)
