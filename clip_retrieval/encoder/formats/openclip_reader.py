"""Plain CLIPs of open_clip without torch: folders and files, OpenAI's archives by their names, tags, and repositories.

Models with parts that our graphs lack, or that are not whole, are left to open_clip, which opens them or says why not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.openai_pt import NOT_WEIGHTS, infer_config, is_weight, read_weights
from clip_retrieval.encoder.formats.openclip_folder import CONFIG_NAME, PreprocessConfig, read_config, to_preprocess
from clip_retrieval.encoder.formats.openclip_hub import (
    QUICK,
    Config,
    explain_not_fetched,
    fetch_repository,
    fetch_tag,
    find_tag,
    read_architecture,
)
from clip_retrieval.encoder.formats.recognize import is_script
from clip_retrieval.encoder.formats.safetensors import DamagedError, check_whole
from clip_retrieval.encoder.hub_connection import hub_or_cache, obstacles
from clip_retrieval.encoder.openai_cache import OPENAI, find_openai
from clip_retrieval.encoder.uri import HUB_PREFIX, ModelName
from clip_retrieval.errors import EncoderError
from clip_retrieval.json_files import check_shape

LOCAL = "local-dir:"
WEIGHTS = (  # in the order in which open_clip chooses among the files of a folder
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
# All published weights of these use OpenAI's preprocessing, so a file of them does, which does not say it.
PLAIN = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-16", "ViT-B-32", "ViT-B-32-256", "ViT-L-14-336")
KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}  # more keys mean another kind of model
SIZES = {  # of each tower, which its tensors also show
    "vision_cfg": ("width", "layers", "image_size", "patch_size"),
    "text_cfg": ("width", "layers", "context_length", "vocab_size"),
}
PICTURE_KEYS = [field.name for field in dataclasses.fields(PreprocessConfig) if field.name != "size"]
T = TypeVar("T")
Found = tuple[Config, PreprocessConfig, Path]


class NotFetchedError(EncoderError):
    """A model is not on this machine, and the hub cannot be reached, by open_clip either."""


def read_openclip(name: ModelName, cache: str | None) -> Checkpoint | None:
    """Read a model as open_clip would open it; None if that is not certain.

    Raises EncoderError if a file cannot be read.
    """
    found = find_model(name, cache)
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


def find_model(name: ModelName, cache: str | None) -> Found | None:
    """Return the configuration of a model, how it takes pictures, and the file of its weights."""
    if name.architecture.startswith(LOCAL):
        folder = Path(name.architecture.removeprefix(LOCAL))
        return *read_config(folder / CONFIG_NAME), find_weights(folder)
    if name.architecture.startswith(HUB_PREFIX):
        path, weights = fetched(name, lambda: fetch_repository(name.architecture.removeprefix(HUB_PREFIX), cache))
        return *read_config(path), weights
    return find_file(name, cache) or find_published(name, cache)


def find_weights(folder: Path) -> Path:
    """Return the file of weights that open_clip takes. Raises DamagedError if there is none, or it is cut off."""
    path = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if path is None:
        raise DamagedError(f"{folder} has no weights, neither {WEIGHTS[0]} nor {WEIGHTS[2]}; fetch them too")
    if path.suffix == ".safetensors":
        check_whole(path)
    return path


def find_published(name: ModelName, cache: str | None) -> Found | None:
    """Return the configuration and the file of weights that open_clip lists by a tag; they are fetched if necessary."""
    if find_openai(name, cache) or Path(name.weights or "").exists():  # a file may have the name of a tag
        return None
    found = find_tag(name.architecture, name.weights)
    config = found and read_architecture(found[0])
    if not found or not config or not is_plain(config):
        return None
    said = {key: found[1][key] for key in PICTURE_KEYS if key in found[1]}
    path = fetched(msgspec.structs.replace(name, architecture=found[0]), lambda: fetch_tag(found[1], cache))
    return config, check_shape(said, PreprocessConfig, name.uri, EncoderError), path


def fetched(name: ModelName, fetch: Callable[[], T]) -> T:
    """Return what is fetched from the hub; raises NotFetchedError if it is not here, and the hub cannot be reached.

    Any other failure is an EncoderError, which open_clip explains.
    """
    with hub_or_cache():
        try:
            return fetch()
        except Exception as error:  # the hub raises errors of all kinds
            kind = NotFetchedError if obstacles else EncoderError
            raise kind(explain_not_fetched(name, error)) from error


def find_file(name: ModelName, cache: str | None) -> Found | None:
    """Return the configuration that open_clip has of an architecture, and the file of its weights."""
    archive = find_openai(name, cache)
    if name.architecture.removesuffix(QUICK) not in PLAIN and archive is None:
        return None
    path = Path(archive or name.weights or "")
    if archive is None and not path.is_absolute():  # a tag, or a file with the name of one
        return None
    is_openai = archive is not None and name.architecture.endswith(QUICK)
    if not path.is_file() or is_openai != (path.suffix != ".safetensors" and is_script(path)):
        return None
    config = read_architecture(name.architecture)
    return None if config is None else (config, PreprocessConfig(), path)


def is_plain(config: Config) -> bool:
    """Say whether both towers are open_clip's own, not those of timm or transformers, and there is nothing else."""
    return config.keys() <= KEYS and all(config[part].keys() >= {"width", "layers"} for part in SIZES)


def is_described(tensors: Mapping[str, NDArray[Any]], config: Config) -> bool:
    """Say whether tensors have the shapes that a configuration gives; open_clip changes or refuses others."""
    scale = tensors.get("logit_scale")
    if not is_plain(config) or "logit_bias" in tensors or scale is None or scale.shape:
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
