"""What open_clip's lists and folders say of an architecture and its published weights; needs no network."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import open_clip
from open_clip.pretrained import get_pretrained_cfg

from clip_retrieval.encoder.formats.openclip_folder import CONFIG_NAME, read_config
from clip_retrieval.encoder.formats.recognize import is_script
from clip_retrieval.encoder.openai_cache import OPENAI, find_openai
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError

logger = logging.getLogger(__name__)

HUB_PARTS = {"hf_model_name", "hf_tokenizer_name"}  # keys of text_cfg that name repositories of the hub
PLACES = ("local-dir:", "hf-hub:")  # these have their own configuration
USUAL: Mapping[str, Any] = {  # OpenAI's preprocessing
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def resolve_weights(name: ModelName, cache: str | None) -> ModelName:
    """Return the name with its weights, a tag or a file, and with the architecture that they were trained for."""
    if name.kind != "open_clip" or name.architecture.startswith(PLACES):
        return name
    weights = choose_weights(name)
    tag = OPENAI if is_openai_archive(weights) else weights
    architecture = match_activation(name.architecture, tag)
    return msgspec.structs.replace(name, architecture=architecture, weights=find_openai(name, cache) or weights)


def asks_hub(name: ModelName) -> bool:
    """Say whether opening the model asks the hub: for a repository, weights by their tag, or parts of transformers."""
    if name.architecture.startswith("hf-hub:") or (name.weights is not None and not Path(name.weights).exists()):
        return True
    if name.architecture.startswith("local-dir:"):
        text_config = read_config(Path(name.architecture.removeprefix("local-dir:")) / CONFIG_NAME)[0]["text_cfg"]
    else:
        text_config = open_clip.get_model_config(name.architecture)["text_cfg"]
    return bool(HUB_PARTS & text_config.keys())


def is_openai_archive(weights: str) -> bool:
    """Say whether a file is a TorchScript archive, the form of OpenAI's own files."""
    path = Path(weights)
    return path.is_file() and zipfile.is_zipfile(path) and is_script(path)


def choose_weights(name: ModelName) -> str:
    """Return the tag or file to load; if none is named, the last listed tag, with a warning."""
    tags = open_clip.list_pretrained_tags_by_model(name.architecture)
    if name.weights is None:
        if not tags:
            raise EncoderError(f"open_clip publishes no weights for {name.architecture}; name a checkpoint file")
        logger.warning("%s names no weights; %s is used (of %s)", name.uri, tags[-1], ", ".join(tags))
        return str(tags[-1])
    if not get_pretrained_cfg(name.architecture, name.weights) and not Path(name.weights).exists():
        known = f"its tags are {', '.join(tags)}" if tags else "open_clip publishes none for it"
        raise EncoderError(f"{name.uri}: {name.weights} is neither a file nor a tag of {name.architecture}; {known}")
    return name.weights


def match_activation(architecture: str, tag: str) -> str:
    """Return ARCH-quickgelu for weights that were trained with QuickGELU.

    open_clip only warns, and then computes other embeddings than in training.
    """
    quick = f"{architecture}-quickgelu"
    is_quick = get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    if not is_quick or open_clip.get_model_config(architecture).get("quick_gelu", False):
        return architecture
    if open_clip.get_model_config(quick) is None or not get_pretrained_cfg(quick, tag):
        logger.warning("%s of %s was trained with QuickGELU, which open_clip's %s lacks", tag, architecture, quick)
        return architecture
    logger.info("%s of %s was trained with QuickGELU: %s is used", tag, architecture, quick)
    return quick


def published_preprocess(name: ModelName) -> dict[str, Any]:
    """Return the preprocessing of all published weights of an architecture, for weights that do not say it.

    open_clip uses OpenAI's preprocessing for files and random weights of any architecture. Empty if that is
    kept: for tags and folders, which say it themselves, and if published weights differ.
    """
    is_file = name.weights is not None and not get_pretrained_cfg(name.architecture, name.weights)
    if name.architecture.startswith(PLACES) or not (is_file or name.kind == "random"):
        return {}
    if name.weights is not None and is_openai_archive(name.weights):
        return dict(USUAL)
    tags = open_clip.list_pretrained_tags_by_model(name.architecture)
    configs = [dict(USUAL) | filter_preprocess(get_pretrained_cfg(name.architecture, tag)) for tag in tags]
    if not configs:
        return {}
    if any(config != configs[0] for config in configs):
        if is_file:
            logger.warning(
                "%s: published weights of %s differ in how pictures are prepared, and a file does not say it; it is "
                "assumed to be OpenAI's. Name a tag, or a folder with open_clip_config.json, if it is not",
                name.uri,
                name.architecture,
            )
        return {}
    if is_file and configs[0] != USUAL:
        how = ", ".join(f"{key} {value}" for key, value in configs[0].items())
        logger.warning("%s: pictures are prepared as for all published weights of it (%s)", name.uri, how)
    return configs[0]


def filter_preprocess(tag_config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tag_config[key] for key in USUAL if key in tag_config}
