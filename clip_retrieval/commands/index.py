"""Commands that build, measure and change indices."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import CommandWithCommands, json_option, print_json
from clip_retrieval.index.config import CombineConfig, IndexConfig, ScoreConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config


@click.group(cls=CommandWithCommands)
@config_options(IndexConfig)
@json_option
def index(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build nearest-neighbour indices of an embeddings folder, within the memory given."""
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()
    from clip_retrieval.commands.reports.index import print_indices, print_preview
    from clip_retrieval.index.build import build_indices
    from clip_retrieval.index.folder.build_options import read_index_config
    from clip_retrieval.index.preview import preview_indices

    config = read_index_config(given_options(options), arguments)
    if config.dry_run:
        preview = preview_indices(config)
        print_json(preview.to_json()) if as_json else print_preview(preview)
        click.get_current_context().exit(1 if preview.is_refused else 0)
    result = build_indices(config)
    print_json(result.to_json()) if as_json else print_indices(result)


@index.command("score")
@config_options(ScoreConfig)
@json_option
def score(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure recall and time of an index that is there, and tune its search settings."""
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()
    from clip_retrieval.commands.reports.index import print_scores
    from clip_retrieval.index.folder.build_options import read_score_config
    from clip_retrieval.index.score import run_score

    result = run_score(read_score_config(given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_scores(result)


@index.command("combine")
@config_options(CombineConfig)
@json_option
def combine(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Merge partitioned indices of one modality, in memory or with lists on disk."""
    from clip_retrieval.index.combine import run_combine

    result = run_combine(build_config(CombineConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else click.echo(result.sentence())


@click.command("index_combiner")
@click.argument("input_folder")
@click.argument("output_folder")
@json_option
def index_combiner(*, input_folder: str, output_folder: str, as_json: bool) -> None:
    """Merge *.index files into OUTPUT_FOLDER/merged_index.ivfdata and populated.index, as clip-retrieval 2 does."""
    from clip_retrieval.index.combine import combine_folder

    result = combine_folder(input_folder, output_folder)
    print_json(result.to_json()) if as_json else click.echo(result.sentence())


@index.command("info")
@click.argument("index_folder")
@json_option
def info(*, index_folder: str, as_json: bool) -> None:
    """Say what the indices of a folder are: kind, rows, size, settings, recall, model."""
    from clip_retrieval.commands.reports.index import print_info
    from clip_retrieval.index.info import describe_folder

    found = describe_folder(index_folder)
    print_json(found) if as_json else print_info(found)
