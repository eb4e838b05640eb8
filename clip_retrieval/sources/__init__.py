"""What samples are read from: one file for each input format, behind one protocol."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol, assert_never, runtime_checkable

from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure, Sample


class Source(Protocol):
    """An ordered input, cut into units that partitions are made of."""

    @property
    def config(self) -> SourceConfig:
        """The options, with the parts switched off that the input does not have."""
        ...

    @property
    def units(self) -> Sequence[str]:
        """What partitions are made of, in order: samples of a folder, tars, or pieces of tables."""
        ...

    @property
    def samples_per_unit(self) -> int | None:
        """About how many samples a unit has; None where that is not known before it is read."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        """Yield the samples of units start..stop in input order, and what was left out of them."""
        ...

    def estimate_total(self) -> int | None:
        """Return about how many samples there are, as far as is known by now."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that reads single samples without the others of their unit, or without fetching those."""

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample | Failure]:
        """Yield the samples with these pairs of shard and key, in input order."""
        ...


def open_source(config: SourceConfig, output_folder: str) -> Source:
    """Look at the input, but for what lies in the output folder; raises SourceError where there is none."""
    match config.input_format:
        case "files":
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
