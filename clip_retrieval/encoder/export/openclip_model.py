"""An open_clip model of any architecture to a folder of open_clip's: SigLIP, CoCa, EVA, ConvNeXt, MobileCLIP, ..."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from numpy.typing import NDArray
from torch import Tensor

from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
from clip_retrieval.encoder.export.graph import Stored
from clip_retrieval.encoder.formats.openclip_folder import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    describe_preprocess,
    new_folder,
    write_json,
    write_weights,
)
from clip_retrieval.errors import EncoderError


def write_openclip_model(encoder: OpenClipEncoder, folder: Path, dtype: Stored) -> None:
    """Write open_clip_config.json, the state dict, and the files of a tokenizer that is not CLIP's own."""
    config = {
        "model_cfg": read_model_config(encoder),
        "preprocess_cfg": describe_preprocess(encoder.info.preprocess),
    }
    with new_folder(folder) as staged:
        loaders = {name: load_as_array(value) for name, value in encoder.model.state_dict().items()}
        write_weights(staged / WEIGHTS_NAME, loaders, dtype)
        write_json(staged / CONFIG_NAME, config)
        if hasattr(encoder.tokenizer, "save_pretrained"):
            encoder.tokenizer.save_pretrained(str(staged))


def load_as_array(value: Tensor) -> Callable[[], NDArray[Any]]:
    return lambda: value.detach().cpu().numpy()


def read_model_config(encoder: OpenClipEncoder) -> dict[str, Any]:
    """Return open_clip's configuration of the model, from its folder or from open_clip."""
    architecture = encoder.architecture
    if architecture is None:
        raise EncoderError(f"{encoder.info.uri} is not a model of open_clip's")
    if architecture.startswith("local-dir:"):
        path = Path(architecture.removeprefix("local-dir:")) / CONFIG_NAME
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]  # its shape was checked when it was opened
    elif architecture.startswith("hf-hub:"):
        config = open_clip.factory._get_hf_config(architecture.removeprefix("hf-hub:"))["model_cfg"]
    else:
        config = open_clip.get_model_config(architecture)
    return dict(config)
