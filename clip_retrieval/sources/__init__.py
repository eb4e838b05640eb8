"""Readers of samples: one module per input format, behind the protocol Source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

if TYPE_CHECKING:
    from clip_retrieval.sources.config import InputFormat, SourceConfig
    from clip_retrieval.sources.protocol import Source
    from clip_retrieval.sources.saving import Codec


def open_source(config: SourceConfig, output_folder: str) -> Source:
    """Open the input, or the first samples of it, ignoring the output folder inside it.

    Raises SourceError if it cannot be read or is empty.
    """
    source = open_whole(config, output_folder)
    if config.subset_size is None:
        return source
    from clip_retrieval.sources.subset import take_first

    return take_first(source, config.subset_size)


def codec_of(input_format: InputFormat) -> Codec[Any]:
    """Return how the units of an input are saved with a plan."""
    match input_format:
        case "files" | "video":
            from clip_retrieval.sources.files import CODEC
        case "webdataset":
            from clip_retrieval.sources.webdataset import CODEC
        case "parquet" | "datasets" | "urls":
            from clip_retrieval.sources.saved_tables import CODEC
        case "archive":
            from clip_retrieval.sources.archive import CODEC
        case _:
            assert_never(input_format)
    return CODEC


def open_whole(config: SourceConfig, output_folder: str) -> Source:
    match config.input_format:
        case "files" | "video":
            from clip_retrieval.sources.files import open_files

            return open_files(config, output_folder)
        case "webdataset":
            from clip_retrieval.sources.webdataset import open_webdataset

            return open_webdataset(config, output_folder)
        case "parquet":
            from clip_retrieval.sources.parquet import open_parquet_source

            return open_parquet_source(config, output_folder)
        case "datasets":
            from clip_retrieval.sources.datasets import open_datasets

            return open_datasets(config)
        case "urls":
            from clip_retrieval.sources.urls import open_urls

            return open_urls(config, output_folder)
        case "archive":
            from clip_retrieval.sources.archive import open_archives

            return open_archives(config, output_folder)
        case _:
            assert_never(config.input_format)
