"""Weights that open_clip publishes, by their tags, and repositories of open_clip's models: fetched without torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_retrieval.encoder.formats.openclip_folder import CONFIG_NAME
from clip_retrieval.encoder.hub_connection import why_not_fetched
from clip_retrieval.encoder.openai_cache import openai_file
from clip_retrieval.encoder.uri import ModelName

logger = logging.getLogger(__name__)

QUICK = "-quickgelu"
FUNCTIONS = {"get_pretrained_cfg", "download_pretrained", "download_pretrained_from_hf"}  # what is called here
Config = Mapping[str, Any]


def read_architecture(name: str) -> Config | None:
    """Return open_clip's configuration of an architecture, from its file: importing the package loads torch."""
    try:
        config: Config = json.loads((package_folder() / "model_configs" / f"{name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config


def package_folder() -> Path:
    """Return the folder of open_clip; raises FileNotFoundError if it is not installed."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise FileNotFoundError("open_clip")
    return Path(package.origin).parent


def find_tag(architecture: str, tag: str | None) -> tuple[str, Config] | None:
    """Return the architecture that weights were trained for, and their entry in open_clip's list.

    None if it does not list them, or does not have them on the hub.
    """
    lists = read_lists()
    said: Config = lists["get_pretrained_cfg"](architecture, tag) if lists and tag else {}
    if not said.get("hf_hub"):
        return None
    quick = f"{architecture}{QUICK}"
    if not said.get("quick_gelu") or (read_architecture(architecture) or {}).get("quick_gelu"):
        return architecture, said
    return (quick, said) if read_architecture(quick) and lists["get_pretrained_cfg"](quick, tag) else None


@functools.cache
def read_lists() -> dict[str, Any]:
    """Return the names of open_clip's list of published weights, whose file is run without torch.

    Empty if the file is not the known one.
    """
    names: dict[str, Any] = {"_has_hf_hub": True, "_has_safetensors": True}
    try:
        for file in ("constants.py", "pretrained.py"):
            run_file(package_folder() / file, names)
    except Exception as error:  # noqa: BLE001 -- another version of open_clip, which may raise anything
        logger.debug("open_clip's list of weights cannot be read: %s", error)
    return names if names.keys() >= FUNCTIONS else {}


def run_file(path: Path, names: dict[str, Any]) -> None:
    """Run a file without its imports from its own package and its optional imports, because these load torch."""
    tree = ast.parse(path.read_text("utf-8"), path)
    tree.body = [
        part
        for part in tree.body
        if not isinstance(part, ast.Try) and not (isinstance(part, ast.ImportFrom) and part.level)
    ]
    exec(compile(tree, path, "exec"), names)


def fetch_tag(said: Config, cache: str | None) -> Path:
    """Return the file of weights that the list names, from the hub or its cache; raises any error of open_clip."""
    return Path(fetching()["download_pretrained"](said, cache_dir=cache))


def fetch_repository(repository: str, cache: str | None) -> tuple[Path, Path]:
    """Return the configuration and the weights of a model on the hub; raises any error of open_clip and the hub."""
    lists = fetching()
    config = lists["hf_hub_download"](repository, CONFIG_NAME, cache_dir=cache)
    return Path(config), Path(lists["download_pretrained_from_hf"](repository, cache_dir=cache))


def fetching() -> dict[str, Any]:
    """Return the names of open_clip's list with the hub's client, where its functions look for it."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 -- only where a model is named on a hub

    lists = read_lists()
    lists["hf_hub_download"] = hf_hub_download
    return lists


def explain_not_fetched(name: ModelName, error: Exception) -> str:
    """Return why weights are missing and what to do, in a sentence or two."""
    file = openai_file(name)
    openai = f"a folder with OpenAI's {file} (or CLIP_DIR, or ~/.cache/clip), or to a hub cache"
    where = openai if file else "a hub cache"
    return (
        f"the weights of {name.uri} are not on this machine and could not be fetched ({why_not_fetched(error)}). "
        f"Without network: fetch them elsewhere and pass open_clip:{name.architecture}//path/to/checkpoint, set "
        f"--clip_cache_path to {where} that holds them, or try the embedded model with --clip_model demo"
    )
