"""The jobs submitted to Slurm, and the outcome of one task, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from clip_retrieval.commands.reports.inference import print_summary
from clip_retrieval.inference.distributors.slurm import Submitted
from clip_retrieval.words import counted, printable

if TYPE_CHECKING:
    from clip_retrieval.inference.distributors.slurm_worker import TaskSummary
    from clip_retrieval.inference.summary import RunSummary


def print_script(found: Mapping[str, str]) -> None:
    click.echo(found["script"], nl=False)


def print_submitted(outcome: Submitted | RunSummary) -> None:
    """Print the jobs, or the summary of a run that was already complete."""
    if isinstance(outcome, Submitted):
        click.echo(printable(outcome.sentence()))
    else:
        print_summary(outcome)


def print_task(made: TaskSummary) -> None:
    click.echo(f"{counted(made.partition_count, 'partition')} made, {counted(made.stats.sample_count, 'sample')}")
