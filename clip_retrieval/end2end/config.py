"""The options of `end2end`: a few options of `inference`, `index` and `back`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.errors import ConfigError
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.options import check_least, group, option, option_of, parse_bytes
from clip_retrieval.server.config import AccessConfig
from clip_retrieval.sources.config import InputFormat, SourceConfig

IMAGES, EMBEDDINGS, INDEX, INDICES_PATHS = "images", "embeddings", "index", "indices_paths.json"


@dataclass(frozen=True, kw_only=True)
class End2EndConfig:
    """What is embedded, where the results go, and whether they are served."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("url_list", "output_folder", "run_back")

    url_list: str = option(
        help="A list or table of urls (txt, csv, tsv, jsonl, parquet), a table with pictures, tars, zips, or a folder "
        "of pictures or of any of these.",
        aliases=("input_dataset",),
    )
    output_folder: str = option(
        help="Folder of this machine for embeddings, index and indices_paths.json, and with img2dataset for images."
    )
    run_back: bool = option(True, help="Serve the index at the end, until Ctrl-C.")
    input_format: InputFormat | None = option(None, help="Format of url_list. None: by its names and columns.")
    downloader: Literal["own", "img2dataset"] = option(
        "own",
        help="own: fetch the pictures of urls while embedding them, and keep none. img2dataset: first write them into "
        "tars with that program (pip install img2dataset; a separate environment is fine).",
    )
    image_size: int = option(256, help="img2dataset: side of the pictures in the tars.", least=1)
    url_column: str | None = option_of(SourceConfig, "url_column")
    caption_column: str | None = option_of(SourceConfig, "caption_column")
    enable_text: bool = option_of(SourceConfig, "enable_text")
    enable_metadata: bool = option_of(SourceConfig, "enable_metadata", default=True)
    subset_size: int | None = option_of(SourceConfig, "subset_size")
    fetch_concurrency: int = option_of(SourceConfig, "fetch_concurrency")
    fetch: FetchLimits = group(FetchLimits)
    encoder: EncoderConfig = group(EncoderConfig)
    batch_size: int | None = option_of(InferenceConfig, "batch_size")
    num_prepro_workers: int | None = option_of(InferenceConfig, "num_prepro_workers")
    write_batch_size: int = option_of(InferenceConfig, "write_batch_size", default=100_000)
    update: bool = option_of(InferenceConfig, "update")
    max_index_memory_usage: str | None = option(
        None, help="Largest size of each index: 500MB, 4G. None: 4G, or the size of the existing index."
    )
    current_memory_available: str = option_of(IndexConfig, "current_memory_available")
    access: AccessConfig = group(AccessConfig)

    def __post_init__(self) -> None:
        check_least(self)
        if "://" in self.output_folder or not self.output_folder:
            raise ConfigError(
                "end2end works in a folder of this machine; for other stores run `inference`, `index` and `back` one "
                "after the other"
            )
        for size in (self.max_index_memory_usage, self.current_memory_available):
            if size is not None:
                parse_bytes(size)
