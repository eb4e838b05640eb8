"""The indices that `back` serves, by name: one folder, or the indices of a json file with their own options."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_retrieval.errors import ConfigError
from clip_retrieval.json_files import check_shape, read_json
from clip_retrieval.options import dropped_flags, flags_of, read_given
from clip_retrieval.server.config import LARGEST_PORT, BackConfig, ServedConfig

logger = logging.getLogger(__name__)

USUAL_NAME = "index"
PARTS = "parts"  # key of an index in the json file, instead of its folder
FOLDER_KEYS = ("indice_folder", "index_folder")  # of an index in the json file


@dataclass(frozen=True)
class NamedIndex:
    """An index and its name in requests."""

    name: str
    folder: str
    config: ServedConfig
    parts: tuple[str, ...] = ()  # addresses of servers, instead of a folder


def list_served(config: BackConfig) -> list[NamedIndex]:
    """Return the indices that are served, in the order of the json file. Raises ConfigError."""
    if config.parted.parts:
        return [NamedIndex(USUAL_NAME, "", config.served, check_parts(config.parted.parts, "parts"))]
    path = Path(config.indices_paths).expanduser()
    if "://" in config.indices_paths or path.is_dir():
        name = (
            config.indices_paths.rstrip("/").rpartition("/")[2]
            if "://" in config.indices_paths
            else path.resolve().name
        )
        return [NamedIndex(name or USUAL_NAME, config.indices_paths, config.served)]
    if not path.exists():
        raise ConfigError(
            f"there is neither an index folder nor a json file {path}; give the folder that `clip-retrieval index` "
            "wrote"
        )
    said = read_json(path, dict[str, Any], ConfigError)
    if not said:
        raise ConfigError(f'{path} names no index; write {{"name": "folder"}}')
    return [read_index(name, value, config.served, path) for name, value in said.items()]


def read_index(name: str, value: object, usual: ServedConfig, path: Path) -> NamedIndex:
    """Return one index of the json file; options that it does not set are those of the command line."""
    options = {"indice_folder": value} if isinstance(value, str) else value
    options = check_shape(options, dict[str, Any], f"{path}: {name}", ConfigError)
    folder = next((options[key] for key in FOLDER_KEYS if key in options), None)
    parts = check_parts(options[PARTS], f"{path}: {name}: parts") if PARTS in options else ()
    if parts and folder is not None:
        raise ConfigError(f"{path}: {name} has both parts and an indice_folder; leave one of them out")
    if not parts and (not isinstance(folder, str) or not folder):
        raise ConfigError(f'{path}: {name} names no indice_folder; write {{"{name}": "folder"}}')
    known = {spelling for flag in flags_of(ServedConfig) for spelling in (flag.name, *flag.aliases)}
    known |= set(dropped_flags(ServedConfig))
    unknown = [key for key in options if key not in known and key not in (*FOLDER_KEYS, PARTS)]
    if unknown:
        logger.warning("%s: %s is not an option of an index, and is ignored", path, " and ".join(unknown))
    given = {key: option for key, option in options.items() if key in known}
    try:
        changed: dict[str, Any] = {place[-1]: option for place, option in read_given(ServedConfig, given).items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {name}: {error}") from error
    served = replace(usual, **changed)
    if parts:
        return NamedIndex(name, "", served, parts)
    place = str(folder) if "://" in str(folder) else str(path.parent / Path(str(folder)).expanduser())
    return NamedIndex(name, place, served)


def check_parts(said: object, where: str) -> tuple[str, ...]:
    """Return the addresses of parts. Raises ConfigError if they are invalid, or if one is there twice."""
    if not isinstance(said, list | tuple) or not said or not all(isinstance(url, str) for url in said):
        raise ConfigError(f'{where} is a list of addresses, such as ["http://a:1234", "http://b:1234"]')
    parts = tuple(url.strip().rstrip("/") for url in said)
    for url, typed in zip(parts, said, strict=True):
        if not re.match(r"https?://[^/?#\s]+([/?][^#\s]*)?$", url):
            raise ConfigError(f"{where}: a part is an address such as http://a:1234, unlike {typed!r}")
        port = re.match(r"https?://[^/?]*:([^:/?@\]]+)(?=[/?]|$)", url)
        if port and not (port[1].isdecimal() and 1 <= int(port[1][:9]) <= LARGEST_PORT):
            raise ConfigError(f"{where}: the port in {typed} must be between 1 and {LARGEST_PORT}")
    twice = next((url for place, url in enumerate(parts) if url in parts[:place]), None)
    if twice is not None:
        raise ConfigError(f"{where}: {twice} is there twice, so each of its rows would be found twice")
    return parts
