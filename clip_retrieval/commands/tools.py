"""The small commands, and the demo."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config, with_json
from clip_retrieval.tools.config import (
    BenchmarkConfig,
    ExtractConfig,
    ParquetToArrowConfig,
    SimilarityConfig,
    ZslConfig,
)


@click.command()
@click.argument("folder", default="demo-run")
@with_json
def demo(folder: str) -> Outcome:
    """Embed, index and query the embedded gallery with the embedded model, without network."""
    from clip_retrieval.commands.reports.demo import print_demo
    from clip_retrieval.demo.run import run_demo

    return Outcome(run_demo(folder), print_demo)


@click.command()
@with_config(SimilarityConfig)
def similarity(config: SimilarityConfig) -> Outcome:
    """Compare each picture with each text: a table of cosines."""
    from clip_retrieval.commands.reports.tools import print_similarities
    from clip_retrieval.tools.similarity import run_similarity

    return Outcome(run_similarity(config), print_similarities)


@click.command()
@with_config(ZslConfig)
def zsl(config: ZslConfig) -> Outcome:
    """Say which of the labels fits each picture (zero-shot labeling)."""
    from clip_retrieval.commands.reports.tools import print_labels
    from clip_retrieval.tools.zero_shot import run_zsl

    return Outcome(run_zsl(config), print_labels)


@click.command()
@with_config(ExtractConfig)
def extract(config: ExtractConfig) -> Outcome:
    """Write the embeddings of pictures and texts into OUTPUT_FOLDER, as plain npy files."""
    from clip_retrieval.commands.reports.tools import print_extracted
    from clip_retrieval.tools.extract import run_extract

    return Outcome(run_extract(config), print_extracted)


@click.command()
@with_config(BenchmarkConfig)
def benchmark(config: BenchmarkConfig) -> Outcome:
    """Measure zero-shot accuracy and speed of models on a FOLDER with a folder of pictures for each class."""
    from clip_retrieval.commands.reports.tools import print_benchmark
    from clip_retrieval.tools.benchmark import run_benchmark
    from clip_retrieval.tools.benchmark_report import write_result

    result = run_benchmark(config)
    if config.output is not None:
        write_result(result, config.output)
    return Outcome(result, print_benchmark)


@click.command("parquet_to_arrow")
@with_config(ParquetToArrowConfig)
def parquet_to_arrow(config: ParquetToArrowConfig) -> Outcome:
    """Write the metadata of PARQUET_FOLDER as one Arrow file, for fast access by row."""
    from clip_retrieval.commands.reports.tools import print_converted
    from clip_retrieval.tools.arrow import run_parquet_to_arrow

    return Outcome(run_parquet_to_arrow(config), print_converted)
