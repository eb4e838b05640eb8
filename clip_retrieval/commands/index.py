"""Commands that build, measure and change indices."""

from __future__ import annotations

import click

from clip_retrieval.commands import CommandWithCommands, Outcome, with_config, with_json
from clip_retrieval.index.config import CombineConfig, CombinerConfig, IndexConfig, ScoreConfig
from clip_retrieval.index.folder.build_options import read_index_config, read_score_config


@click.group(cls=CommandWithCommands)
@with_config(IndexConfig, read_index_config)
def index(config: IndexConfig) -> Outcome:
    """Build nearest-neighbor indices of an embeddings folder, within the given memory."""
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()
    from clip_retrieval.commands.reports.index import print_indices, print_preview
    from clip_retrieval.index.build import build_indices
    from clip_retrieval.index.preview import preview_indices

    if config.dry_run:
        preview = preview_indices(config)
        return Outcome(preview, print_preview, exit_code=1 if preview.is_refused else 0)
    return Outcome(build_indices(config), print_indices)


@index.command("score")
@with_config(ScoreConfig, read_score_config)
def score(config: ScoreConfig) -> Outcome:
    """Measure recall and time of an existing index, and tune its search settings."""
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()
    from clip_retrieval.commands.reports.index import print_scores
    from clip_retrieval.index.score import run_score

    return Outcome(run_score(config), print_scores)


@index.command("combine")
@with_config(CombineConfig)
def combine(config: CombineConfig) -> Outcome:
    """Merge partitioned indices of one modality into one file, or into an index with lists on disk."""
    from clip_retrieval.commands.reports.index import print_combined
    from clip_retrieval.index.combine import run_combine

    return Outcome(run_combine(config), print_combined)


@click.command("index_combiner")
@with_config(CombinerConfig)
def index_combiner(config: CombinerConfig) -> Outcome:
    """Merge *.index files into OUTPUT_FOLDER/merged_index.ivfdata and populated.index, as clip-retrieval 2 does."""
    from clip_retrieval.commands.reports.index import print_combined
    from clip_retrieval.index.combine import combine_folder

    return Outcome(combine_folder(config.input_folder, config.output_folder), print_combined)


@index.command("info")
@click.argument("index_folder")
@click.option(
    "--check", is_flag=True, help="Compare every byte of the index files and of metadata.arrow with their checksums."
)
@with_json
def info(index_folder: str, *, check: bool) -> Outcome:
    """Describe the indices of a folder: kind, rows, size, settings, recall, model."""
    from clip_retrieval.commands.reports.index import print_info
    from clip_retrieval.index.info import describe_folder

    return Outcome(describe_folder(index_folder, check=check), print_info)
