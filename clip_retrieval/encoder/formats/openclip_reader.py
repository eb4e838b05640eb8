"""Plain CLIPs of open_clip without torch: folders, files of an architecture, and OpenAI's archives under their names.

What is not as plain as our graphs, or not whole, is left to open_clip, which knows it or says what is wrong.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.openai_pt import NOT_WEIGHTS, infer_config, is_weight, read_weights
from clip_retrieval.encoder.formats.openclip_folder import CONFIG_NAME, OpenClipConfig, PreprocessConfig, to_preprocess
from clip_retrieval.encoder.formats.recognize import is_script
from clip_retrieval.encoder.formats.safetensors import DamagedError, check_whole
from clip_retrieval.encoder.openai_cache import OPENAI, find_openai
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError
from clip_retrieval.json_files import read_json

LOCAL, QUICK = "local-dir:", "-quickgelu"
WEIGHTS = (  # as open_clip chooses among the files of a folder
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
# All published weights of these take pictures as OpenAI's do, so a file of them does, which does not say it.
PLAIN = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-16", "ViT-B-32", "ViT-B-32-256", "ViT-L-14-336")
KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}  # more of them mean another kind of model
SIZES = {  # of each tower, as its tensors tell them
    "vision_cfg": ("width", "layers", "image_size", "patch_size"),
    "text_cfg": ("width", "layers", "context_length", "vocab_size"),
}
Config = Mapping[str, Any]


def read_openclip(name: ModelName, cache: str | None) -> Checkpoint | None:
    """Read a model as open_clip would open it; None where that is not sure.

    Raises EncoderError where a file cannot be read.
    """
    place = name.architecture.removeprefix(LOCAL)
    found = read_folder(Path(place)) if place != name.architecture else find_file(name, cache)
    if found is None:
        return None
    config, pictures, path = found
    is_own = is_weight if name.weights == OPENAI else (lambda tensor: tensor not in NOT_WEIGHTS)
    tensors = {tensor: array for tensor, array in read_weights(path).items() if is_own(tensor)}
    if not is_described(tensors, config):
        return None
    given = dict(name.pictures)
    mean, std = given.get("mean", pictures.mean), given.get("std", pictures.std)
    pictures = dataclasses.replace(pictures, size=config["vision_cfg"]["image_size"], mean=mean, std=std)
    return Checkpoint(name.uri, "clip", config, tensors, to_preprocess(pictures, name.uri))


def read_folder(folder: Path) -> tuple[Config, PreprocessConfig, Path]:
    """Return what a folder of open_clip's says of its model, and the file of its weights."""
    said = read_json(folder / CONFIG_NAME, OpenClipConfig, EncoderError)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["model_cfg"]
    return config, said.preprocess_cfg, find_weights(folder)


def find_weights(folder: Path) -> Path:
    """Return the file of weights that open_clip takes. Raises DamagedError where there is none, or it is cut off."""
    path = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if path is None:
        raise DamagedError(f"{folder} has no weights, neither {WEIGHTS[0]} nor {WEIGHTS[2]}; fetch them too")
    if path.suffix == ".safetensors":
        check_whole(path)
    return path


def find_file(name: ModelName, cache: str | None) -> tuple[Config, PreprocessConfig, Path] | None:
    """Return the configuration that open_clip has of an architecture, and the file of its weights."""
    archive = find_openai(name, cache)
    if name.architecture.removesuffix(QUICK) not in PLAIN and archive is None:
        return None
    path = Path(archive or name.weights or "")
    if archive is None and not path.is_absolute():  # a tag, or a file that may be called like one
        return None
    is_openai = archive is not None and name.architecture.endswith(QUICK)
    if not path.is_file() or is_openai != (path.suffix != ".safetensors" and is_script(path)):
        return None
    config = read_architecture(name.architecture)
    return None if config is None else (config, PreprocessConfig(), path)


def read_architecture(name: str) -> Config | None:
    """Return open_clip's configuration of an architecture, from its file: importing the package loads torch."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "model_configs" / f"{name}.json"
    try:
        config: Config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config


def is_described(tensors: Mapping[str, NDArray[Any]], config: Config) -> bool:
    """Say whether tensors have the shapes that a configuration gives; open_clip changes or refuses others."""
    scale = tensors.get("logit_scale")
    if not config.keys() <= KEYS or "logit_bias" in tensors or scale is None or scale.shape:
        return False
    try:
        found = infer_config(tensors)
    except (KeyError, ValueError, IndexError):
        return False
    return found["embed_dim"] == config["embed_dim"] and all(
        config[part].get(key) == found[part][key]
        for part, keys in SIZES.items()
        for key in keys
        if key in found[part]  # a ResNet has no patches
    )
