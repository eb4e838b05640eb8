"""Commands that curate a data set by its embeddings folder."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config
from clip_retrieval.curate.config import DedupConfig, LabelConfig, ReportConfig, SelectConfig


def prepare() -> None:
    """Load faiss so its threads sleep while they wait."""
    from clip_retrieval.search.load_faiss import load_faiss

    load_faiss()


@click.command()
@with_config(DedupConfig)
def dedup(config: DedupConfig) -> Outcome:
    """Find the duplicates in an embeddings folder, choose which are kept, and write both, with a page to look at."""
    prepare()
    from clip_retrieval.commands.reports.curate import print_dedup
    from clip_retrieval.curate.dedup import run_dedup

    return Outcome(run_dedup(config), print_dedup)


@click.command()
@with_config(LabelConfig)
def label(config: LabelConfig) -> Outcome:
    """Add columns to an embeddings folder: labels, image-text similarity, scores of heads, outliers, clusters."""
    prepare()
    from clip_retrieval.commands.reports.curate import print_label
    from clip_retrieval.curate.label import run_label

    return Outcome(run_label(config), print_label)


@click.command()
@with_config(SelectConfig)
def select(config: SelectConfig) -> Outcome:
    """Choose rows of an embeddings folder by conditions, quotas and diversity, and write them as a subset."""
    prepare()
    from clip_retrieval.commands.reports.curate import print_select
    from clip_retrieval.curate.select import run_select

    return Outcome(run_select(config), print_select)


@click.command()
@with_config(ReportConfig)
def report(config: ReportConfig) -> Outcome:
    """Write one page on an embeddings folder: failures, sizes, captions, near-duplicates, clusters, outliers."""
    prepare()
    from clip_retrieval.commands.reports.curate import print_report
    from clip_retrieval.curate.report import run_report

    return Outcome(run_report(config), print_report)
