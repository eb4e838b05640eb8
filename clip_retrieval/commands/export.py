"""The command that exports an index to other engines."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.export.config import ExportConfig


@click.command()
@with_config(ExportConfig)
def export(config: ExportConfig) -> Outcome:
    """Copy the vectors, ids and metadata of FOLDER into LanceDB, pgvector, Qdrant, Milvus or parquet, and check them.

    TARGET, the second argument, says where the engine is. If it was stopped or killed, run the same command again: it
    continues from there. The exit code is 1 if the check finds a difference.
    """
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()
    from clip_retrieval.commands.reports.export import print_export
    from clip_retrieval.export.run import run_export

    result = run_export(config)
    return Outcome(result, print_export, exit_code=0 if result.is_right else 1)
