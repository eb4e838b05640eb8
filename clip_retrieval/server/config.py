"""The options of `back` and `front`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from clip_retrieval.errors import ConfigError
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.options import Dropped, check_least, group, option, option_of
from clip_retrieval.query.config import SearcherConfig

LARGEST_PORT = 65535
MOST_WORKERS = 64
USUAL_PATH = "indices_paths.json"
URL = "url"
USUAL_COLUMNS = (URL, "image_path", "caption", "NSFW")  # what clip-retrieval 2 returns of the metadata

NO_MODEL = "this model can no longer be installed; filter with `where` over a metadata column instead"
CHANGES_NOTHING: tuple[object, ...] = (None, False)
DROPPED: Mapping[str, Dropped] = {
    "provide_safety_model": Dropped(NO_MODEL),
    "provide_violence_detector": Dropped(NO_MODEL),
    "provide_aesthetic_embeddings": Dropped(
        "aesthetic_score of a request is ignored, as clip-retrieval 2 does without these embeddings", is_refused=False
    ),
    "enable_mclip_option": Dropped(
        "use an index of a multilingual model, which needs no second text encoder", is_refused=False
    ),
    "use_jit": Dropped("torch has deprecated torch.jit, and models run compiled without it", is_refused=False),
    "enable_hdf5": Dropped("metadata comes from metadata.arrow, which `index` writes", is_refused=False),
    "reorder_metadata_by_ivf_index": Dropped("rows are fetched by id as fast in any order", is_refused=False),
    "use_arrow": Dropped("Arrow files are read if an index has them", is_refused=False),
}


@dataclass(frozen=True, kw_only=True)
class ServedConfig:
    """How one index is opened, and which columns it returns; the json file may set this for each index."""

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
        help="Leave the index on disk and read what a query needs, if faiss can.",
        aliases=("enable_faiss_memory_mapping",),
    )
    pictures_below: tuple[str, ...] = option(
        (),
        help="Folders whose pictures are served, following links; without it, the input folder that the index names.",
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
    """Limits of one request, and of all requests together."""

    max_waiting: int = option(
        64, help="Most requests in progress or waiting; more are answered 429 before their body is read.", least=1
    )
    max_heavy: int = option(
        8, help="Of these, most long requests: thousands of hits, near-duplicates of many, conditions.", least=1
    )
    request_timeout: float = option(30.0, help="Seconds after which a request is given up (503).")
    max_body_bytes: int = option(16 << 20, help="Largest body of a request.", least=1)
    max_pixels: int = option(50_000_000, help="Most pixels of a picture in a query.", least=1)
    max_queries: int = option(64, help="Most queries in one request of /v1.", least=1)
    max_results: int = option(10_000, help="Largest number of hits of one query.", least=1)
    search_threads: int = option(2, help="Threads that search.", least=1)
    grace_seconds: float = option(10.0, help="Seconds that requests in progress have when the server is stopped.")

    def __post_init__(self) -> None:
        check_least(self)
        for name in ("request_timeout", "grace_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may use the server: addresses, origins, keys."""

    host: str = option("127.0.0.1", help="Address to listen on; 0.0.0.0: every address of this machine.")
    port: int = option(1234, help="Port to listen on; 0: any free one.", least=0)
    cors: tuple[str, ...] = option(
        (), help="An origin whose pages may use the server, such as https://example.org; '*': any.", repeatable=True
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        help="A host name that requests may use. Without it any name, but on a loopback address only localhost and IP "
        "addresses, so no web page can reach the server by a name of its own.",
        repeatable=True,
    )
    api_key_file: str | None = option(
        None, help="File with one key per line; requests send one as `Authorization: Bearer KEY` or `X-API-Key`."
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
    """An index in parts on other servers, and how requests are sent to them."""

    parts: tuple[str, ...] | None = option(
        None,
        help="Addresses of servers, each with a part of one index, such as http://a:1234,http://b:1234 (with "
        "?index=NAME if it is not their first). All are asked at once; ids count through the parts in this order.",
    )
    part_timeout: float = option(5.0, help="Seconds after which a part that has not answered is left out of an answer.")
    part_wait: float = option(30.0, help="Seconds that parts have to appear when this server starts.", least=0)
    part_key_file: str | None = option(None, help="File whose first line is the key for the parts.")

    def __post_init__(self) -> None:
        check_least(self)
        if self.parts is not None and not self.parts:
            raise ConfigError("parts is empty; name the servers, such as http://a:1234,http://b:1234, or leave it out")
        if not self.part_timeout > 0:
            raise ConfigError(f"part_timeout must be more than 0, not {self.part_timeout}")


@dataclass(frozen=True, kw_only=True)
class BackConfig:
    """Which indices are served, at which address, and within which limits."""

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
        False, help="Fetch the picture that image_url of a request names; only from public addresses."
    )
    fetch: FetchLimits = group(FetchLimits)
    workers: int = option(
        1,
        help="Processes that answer, each with its own model; they share the cores and search_threads; limits apply to "
        "each process.",
        least=1,
    )
    thumbnail_size: int = option(256, help="Longest side of the pictures in answers; 0: no pictures.", least=0)
    reload_seconds: float = option(2.0, help="Seconds between checks for a new build of index folders; 0: never.")
    front_folder: str | None = option(None, help="Folder of a web front that is served at / instead of ours.")
    default_backend: str | None = option(None, help="Backend address in /config.json for a front; None: this server.")
    url_column: str = option("url", help="Column, named in /config.json, from which a front takes urls of pictures.")

    def __post_init__(self) -> None:
        check_least(self)
        if self.workers > MOST_WORKERS:
            raise ConfigError(f"workers must be at most {MOST_WORKERS}, not {self.workers}")
        if self.parted.parts and self.indices_paths != USUAL_PATH:
            raise ConfigError(
                f"both parts and {self.indices_paths} are given; name one, or write the parts into the json file"
            )


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """Where only the web page is served, and which server it uses."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("default_backend", "default_index", "url_column")

    default_backend: str = option(
        "http://127.0.0.1:1234", help="Address of the page's server: `back`, or one of clip-retrieval 2."
    )
    default_index: str = option("", help="Index that the page begins with; empty: the server's first.")
    url_column: str = option_of(BackConfig, "url_column")
    host: str = option_of(AccessConfig, "host")
    port: int = option(1235, help="Port to listen on; 0: any free one.", least=0)
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
