"""The small commands, and the demo."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import json_option, print_json
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config
from clip_retrieval.tools.config import (
    BenchmarkConfig,
    ExtractConfig,
    ParquetToArrowConfig,
    SimilarityConfig,
    ZslConfig,
)


@click.command()
@click.argument("folder", default="demo-run")
@json_option
def demo(*, folder: str, as_json: bool) -> None:
    """Embed, index and query the embedded gallery with the embedded model: everything, without network."""
    from clip_retrieval.commands.reports.demo import print_demo
    from clip_retrieval.demo.run import run_demo

    result = run_demo(folder)
    print_json(result.to_json()) if as_json else print_demo(result)


@click.command()
@config_options(SimilarityConfig)
@json_option
def similarity(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Compare each picture with each text: a table of cosines."""
    from clip_retrieval.commands.reports.tools import print_similarities
    from clip_retrieval.tools.similarity import run_similarity

    result = run_similarity(build_config(SimilarityConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_similarities(result)


@click.command()
@config_options(ZslConfig)
@json_option
def zsl(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say which of the labels fits each picture (zero-shot labelling)."""
    from clip_retrieval.commands.reports.tools import print_labels
    from clip_retrieval.tools.zero_shot import run_zsl

    result = run_zsl(build_config(ZslConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_labels(result)


@click.command()
@config_options(ExtractConfig)
@json_option
def extract(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write the embeddings of pictures and texts into OUTPUT_FOLDER, as plain npy files."""
    from clip_retrieval.commands.reports.tools import print_extracted
    from clip_retrieval.tools.extract import run_extract

    result = run_extract(build_config(ExtractConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_extracted(result)


@click.command()
@config_options(BenchmarkConfig)
@json_option
def benchmark(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure zero-shot accuracy and speed of models on a FOLDER with a folder of pictures for each class."""
    from clip_retrieval.commands.reports.tools import print_benchmark
    from clip_retrieval.tools.benchmark import run_benchmark
    from clip_retrieval.tools.benchmark_report import write_result

    config = build_config(BenchmarkConfig, given_options(options), arguments)
    result = run_benchmark(config)
    if config.output is not None:
        write_result(result, config.output)
    print_json(result.to_json()) if as_json else print_benchmark(result)


@click.command("parquet_to_arrow")
@config_options(ParquetToArrowConfig)
@json_option
def parquet_to_arrow(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write the metadata of PARQUET_FOLDER as one Arrow file, out of which rows are fetched fast."""
    from clip_retrieval.commands.reports.tools import print_converted
    from clip_retrieval.tools.arrow import run_parquet_to_arrow

    result = run_parquet_to_arrow(build_config(ParquetToArrowConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_converted(result)
