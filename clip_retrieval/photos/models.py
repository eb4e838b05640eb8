"""The model for a new folder: the best one whose weights are on this machine, found without network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.cache_home import cache_home, hub_repository
from clip_retrieval.cache_home import find_obstacle as find_cache_obstacle
from clip_retrieval.encoder.engines.open import check_model_name
from clip_retrieval.encoder.hub_connection import find_obstacle
from clip_retrieval.encoder.openai_cache import find_openai
from clip_retrieval.encoder.uri import absolute_uri, parse_uri
from clip_retrieval.errors import StorageError
from clip_retrieval.installed import is_installed
from clip_retrieval.json_files import read_json
from clip_retrieval.photos.known_models import KNOWN, Known
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
AUTO = "auto"
DEMO = "demo"
FETCHED = "open_clip:ViT-B-32/laion2b_s34b_b79k"  # if no model is here: small, and fast on a CPU
FETCHED_BYTES = "600 MB"
SECONDS_FOR_HUB = 3.0
WEIGHTS = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class Settings:
    """The settings that `search --use_model` wrote."""

    clip_model: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """A model, and the reason for it, in words."""

    clip_model: str
    reason: str


def choose_model(named: str | None) -> Choice:
    """Return the model for a new folder."""
    if named is not None:
        return Choice(absolute_uri(named), "--clip_model names it")
    setting = read_settings().clip_model
    if setting is not None:
        return Choice(setting, "--use_model set it")
    if not is_installed("torch"):
        return Choice(DEMO, "without torch it is this one or --clip_model onnx:FOLDER; it knows emoji, not photographs")
    found = max(find_models(), key=lambda known: known.accuracy, default=None)
    if found is not None:
        return Choice(found.clip_model, "the best of the models on this machine; --clip_model names another")
    obstacle = find_obstacle(SECONDS_FOR_HUB)
    if obstacle is None:
        return Choice(FETCHED, f"no model is on this machine yet: it is fetched, once, {FETCHED_BYTES}")
    logger.debug("%s", obstacle)
    return Choice(DEMO, "no other model is on this machine, and none can be fetched")


def find_models() -> Iterator[Known]:
    """Yield the well-known models whose weights are here: in the hub's cache, or in that of OpenAI's package."""
    for known in KNOWN:
        is_here = any(has_weights(hub_repository(name)) for name in known.repositories)
        if is_here or find_openai(parse_uri(known.clip_model), None):
            yield known


def has_weights(repository: Path) -> bool:
    """Say whether a snapshot in the hub's cache holds weights; a broken link is a download that never ended."""
    return any(path.suffix in WEIGHTS and path.exists() for path in repository.glob("snapshots/*/*"))


def read_settings() -> Settings:
    path = settings_folder() / SETTINGS
    try:
        return read_json(path, Settings) if path.exists() else Settings()
    except StorageError as error:
        advice = f"clip-retrieval search --use_model {AUTO} writes it again" if path.is_file() else "remove it"
        raise StorageError(error.what, advice=advice) from error


def write_setting(name: str) -> Settings:
    """Save the model for new folders; `auto` removes the setting. Raises EncoderError for an unknown model."""
    model = None if name == AUTO else absolute_uri(name)
    if model is not None:
        check_model_name(model)
    if settings_folder() == cache_home() and (obstacle := find_cache_obstacle()) is not None:
        raise StorageError(obstacle)
    Folder(str(settings_folder())).write_json(SETTINGS, {"clip_model": model})
    if read_settings().clip_model != model:
        raise StorageError(f"{settings_folder() / SETTINGS} could not be written")
    return Settings(model)


def settings_folder() -> Path:
    """Return the folder of settings: below XDG_CONFIG_HOME, or next to a cache that CLIP_RETRIEVAL_CACHE moved."""
    if os.environ.get("CLIP_RETRIEVAL_CACHE"):
        return cache_home()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "clip-retrieval"
