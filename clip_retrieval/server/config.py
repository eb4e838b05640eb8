"""The options of `back`, and the json file that names several indices with options of their own."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from clip_retrieval.errors import ConfigError
from clip_retrieval.json_files import check_shape, read_json
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.options import Dropped, check_least, dropped_flags, flags_of, group, option, option_of, read_given
from clip_retrieval.query.config import SearcherConfig

logger = logging.getLogger(__name__)

LARGEST_PORT = 65535
USUAL_PATH, USUAL_NAME = "indices_paths.json", "index"
PARTS = "parts"  # key of an index in the json file, instead of its folder
FOLDER_KEYS = ("indice_folder", "index_folder")  # of an index in the json file
URL = "url"
USUAL_COLUMNS = (URL, "image_path", "caption", "NSFW")  # what clip-retrieval 2 returns of the metadata

NO_MODEL = "there is no such model to install any more; filter with `where` over a metadata column instead"
CHANGES_NOTHING: tuple[object, ...] = (None, False)
DROPPED: Mapping[str, Dropped] = {
    "provide_safety_model": Dropped(NO_MODEL),
    "provide_violence_detector": Dropped(NO_MODEL),
    "provide_aesthetic_embeddings": Dropped(
        "aesthetic_score of a request is ignored, as clip-retrieval 2 does without these embeddings", is_refused=False
    ),
    "enable_mclip_option": Dropped(
        "take an index of a multilingual model, which needs no second text encoder", is_refused=False
    ),
    "use_jit": Dropped("torch has deprecated torch.jit, and models run compiled without it", is_refused=False),
    "enable_hdf5": Dropped("metadata comes out of metadata.arrow, which `index` writes", is_refused=False),
    "reorder_metadata_by_ivf_index": Dropped("rows are fetched by id as fast in any order", is_refused=False),
    "use_arrow": Dropped("Arrow files are read wherever an index has some", is_refused=False),
}


@dataclass(frozen=True, kw_only=True)
class ServedConfig:
    """How one index is opened, and what is returned of it; the json file may say so for each index."""

    DROPPED: ClassVar[Mapping[str, Dropped]] = DROPPED

    columns_to_return: tuple[str, ...] | None = option(
        None,
        help="Metadata columns that may leave the server. None: /knn-service and /metadata give url, image_path, "
        "caption and NSFW, /v1 every column.",
    )
    clip_model: str | None = option(
        None, help="The model of the index. None: the one that the index names, else (clip-retrieval 2) ViT-B/32."
    )
    device: str = option("cpu", help="Where queries are embedded.")
    clip_cache_path: str | None = option_of(SearcherConfig, "clip_cache_path")
    index_param: str | None = option_of(SearcherConfig, "index_param")
    memory_map: bool = option(
        True,
        help="Leave the index on disk and read what a query needs, where faiss can.",
        aliases=("enable_faiss_memory_mapping",),
    )
    pictures_below: tuple[str, ...] = option(
        (),
        help="Pictures are served that lie below one of these folders, links followed; without it below the input that "
        "the index names.",
        repeatable=True,
    )

    @property
    def searcher(self) -> SearcherConfig:
        return SearcherConfig(
            clip_model=self.clip_model,
            device=self.device,
            clip_cache_path=self.clip_cache_path,
            index_param=self.index_param,
            memory_map=self.memory_map,
        )


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one request, and all of them together, may take."""

    max_waiting: int = option(
        64, help="Requests in work or waiting at once; one more is answered 429 before its body is read.", least=1
    )
    max_heavy: int = option(
        8, help="Of these, requests that take long: thousands of hits, near-duplicates of many, conditions.", least=1
    )
    request_timeout: float = option(30.0, help="Seconds after which a request is given up (503).")
    max_body_bytes: int = option(16 << 20, help="Largest body of a request.", least=1)
    max_pixels: int = option(50_000_000, help="Most pixels of a picture that is asked with.", least=1)
    max_queries: int = option(64, help="Most queries in one request of /v1.", least=1)
    max_results: int = option(10_000, help="Most hits of one query.", least=1)
    search_threads: int = option(2, help="Threads that search.", least=1)
    grace_seconds: float = option(10.0, help="Seconds that requests under way have when the server is stopped.")

    def __post_init__(self) -> None:
        check_least(self)
        for name in ("request_timeout", "grace_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may ask: addresses, origins, keys."""

    host: str = option("127.0.0.1", help="Address to listen at; 0.0.0.0: every one of this machine.")
    port: int = option(1234, help="Port to listen at; 0: any that is free.", least=0)
    cors: tuple[str, ...] = option(
        (), help="An origin whose pages may ask, such as https://example.org; '*': any.", repeatable=True
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        help="A name that requests may call this server by. Without it any, and on a loopback address only localhost "
        "and IP addresses, so that no web page reaches it by a name of its own.",
        repeatable=True,
    )
    api_key_file: str | None = option(
        None, help="File with a key in each line; requests bring one as `Authorization: Bearer KEY` or `X-API-Key`."
    )
    ssl_certfile: str | None = option(None, help="Certificate (PEM): the server speaks https.")
    ssl_keyfile: str | None = option(None, help="Its private key (PEM).")

    def __post_init__(self) -> None:
        check_least(self)
        if self.port > LARGEST_PORT:
            raise ConfigError(f"port is a port up to {LARGEST_PORT}, not {self.port}")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_keyfile is given without ssl_certfile; give both")


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """An index in parts on other servers, and how these are asked."""

    parts: tuple[str, ...] | None = option(
        None,
        help="Addresses of servers with a part of one index each, such as http://a:1234,http://b:1234 (and ?index=NAME "
        "for another than their first): all are asked at once, and the rows of each follow those of the one before.",
    )
    part_timeout: float = option(5.0, help="Seconds after which a part that has not answered is left out of an answer.")
    part_wait: float = option(30.0, help="Seconds that parts have to appear when this server starts.", least=0)
    part_key_file: str | None = option(None, help="File whose first line is the key that the parts want.")

    def __post_init__(self) -> None:
        check_least(self)
        if self.parts is not None and not self.parts:
            raise ConfigError("parts is empty; name the servers, such as http://a:1234,http://b:1234, or leave it out")
        if not self.part_timeout > 0:
            raise ConfigError(f"part_timeout must be more than 0, not {self.part_timeout}")


@dataclass(frozen=True, kw_only=True)
class BackConfig:
    """Which indices are served, where, and within which limits."""

    DROPPED: ClassVar[Mapping[str, Dropped]] = DROPPED
    POSITIONAL: ClassVar[tuple[str, ...]] = (
        "indices_paths", "port", "enable_faiss_memory_mapping", "columns_to_return",
    )  # fmt: skip

    indices_paths: str = option(
        USUAL_PATH,
        help="An index folder, or a json file: {name: folder}, {name: {indice_folder: folder, …options of one index}}, "
        "{name: {parts: [address, …]}}; its relative folders start at the file.",
        aliases=("index_folder", "indice_folder"),
    )
    access: AccessConfig = group(AccessConfig)
    served: ServedConfig = group(ServedConfig)
    limits: LimitsConfig = group(LimitsConfig)
    parted: PartsConfig = group(PartsConfig)
    allow_image_urls: bool = option(
        False, help="Fetch the picture that image_url of a request names; public addresses only."
    )
    fetch: FetchLimits = group(FetchLimits)
    thumbnail_size: int = option(256, help="Longest side of the pictures within answers; 0: none are there.", least=0)
    reload_seconds: float = option(2.0, help="How often index folders are looked at for a new build; 0: never.")
    front_folder: str | None = option(None, help="Folder of a web front that is served at / instead of ours.")
    default_backend: str | None = option(None, help="Address that /config.json tells a front; None: this server's own.")
    url_column: str = option("url", help="Column that /config.json tells a front to take addresses of pictures from.")

    def __post_init__(self) -> None:
        check_least(self)
        if self.parted.parts and self.indices_paths != USUAL_PATH:
            raise ConfigError(
                f"both parts and {self.indices_paths} are given; name one, or write the parts into the json file"
            )


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """Where the web page is served alone, and which server it asks."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("default_backend", "default_index", "url_column")

    default_backend: str = option(
        "http://127.0.0.1:1234", help="Address of the server that the page asks: `back`, or one of clip-retrieval 2."
    )
    default_index: str = option("", help="Index that the page begins with; empty: the server's first.")
    url_column: str = option_of(BackConfig, "url_column")
    host: str = option_of(AccessConfig, "host")
    port: int = option(1235, help="Port to listen at; 0: any that is free.", least=0)
    allowed_hosts: tuple[str, ...] = option_of(AccessConfig, "allowed_hosts")

    def __post_init__(self) -> None:
        check_least(self)
        if not self.default_backend.startswith(("http://", "https://")):
            raise ConfigError(
                f"default_backend is an address such as http://127.0.0.1:1234, not {self.default_backend!r}"
            )

    @property
    def access(self) -> AccessConfig:
        return AccessConfig(host=self.host, port=self.port, allowed_hosts=self.allowed_hosts)


@dataclass(frozen=True)
class NamedIndex:
    """An index by the name that requests call it by."""

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
    """Return one index of the json file; what it does not say is as on the command line."""
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
    """Return the addresses of parts. Raises ConfigError where they are none, or one is there twice."""
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
