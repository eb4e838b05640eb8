"""The outcomes of curation, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_retrieval.commands.reports.console import open_console
from clip_retrieval.words import counted

if TYPE_CHECKING:
    from clip_retrieval.curate.dedup import DedupResult
    from clip_retrieval.curate.label import LabelResult
    from clip_retrieval.curate.report import ReportResult
    from clip_retrieval.curate.select import SelectResult

SHOWN_CLUSTERS, SHOWN_COLUMNS = 20, 12
REASONS = {
    "bytes": "the same bytes",
    "embedding": "the same embedding",
    "perceptual": "a similar perceptual hash",
    "semantic": "a similar embedding",
}


def print_dedup(result: DedupResult) -> None:
    """Print how many duplicates there are and why, how certain that is, and where the files are."""
    console = open_console()
    console.print(
        f"{counted(result.duplicates, 'duplicate')} in {counted(result.groups, 'group')}; "
        f"{result.kept:,} of {counted(result.rows, 'row')} are kept"
    )
    for name, count in result.reasons.items():
        console.print(f"  {count:,}: {REASONS[name]}")
    if result.compared < result.rows:
        console.print(f"without an embedding: {counted(result.rows - result.compared, 'row')}", style="dim")
    if result.unread:
        what = f"{counted(result.unread, 'row')} without a readable picture"
        console.print(f"note: {what}, which --by perceptual could not compare", style="yellow")
    console.print(how_sure(result), style="dim")
    print_files(result.output_folder, result.files, result.notes, is_new=result.is_new)


def how_sure(result: DedupResult) -> str:
    """Say which pairs were compared, and what may have been missed."""
    if result.is_exact:
        return "every pair that can be compared is known"
    if result.recall is None:
        return (
            f"compared within {counted(result.blocks, 'block')} and with their neighbors; --check_rows measures recall"
        )
    found = f"{result.recall.found:,} of {counted(result.recall.pairs, 'pair')}"
    return (
        f"compared within {counted(result.blocks, 'block')} and with their neighbors: {found} of "
        f"{counted(result.recall.rows, 'row')} were found; --exact True finds all"
    )


def print_files(folder: str, files: Sequence[str], notes: Sequence[str], *, is_new: bool = True) -> None:
    console = open_console()
    for note in notes:
        console.print(f"note: {note}", style="yellow")
    first, *others = files
    if not is_new:
        console.print(
            f"nothing was done: {folder} holds this result of the same options and rows; --overwrite makes it again"
        )
    console.print(f"{'written' if is_new else 'there'}: {', '.join([f'{folder}/{first}', *others])}")


def print_label(result: LabelResult) -> None:
    """Print which columns there are now, and the names of the clusters."""
    console = open_console()
    for note in result.notes:
        console.print(f"note: {note}", style="yellow")
    for number, name in list(enumerate(result.clusters))[:SHOWN_CLUSTERS]:
        console.print(f"  cluster {number}: {name or '-'}")
    if len(result.clusters) > SHOWN_CLUSTERS:
        console.print(f"  … and {len(result.clusters) - SHOWN_CLUSTERS:,} more")
    by_count: dict[int, list[str]] = {}
    for name in result.columns[:SHOWN_COLUMNS]:
        by_count.setdefault(result.filled[name], []).append(name)
    for count, names in by_count.items():
        console.print(f"{count:,} of {counted(result.rows, 'row')} have {', '.join(names)}")
    also = "" if result.index_folder is None else f" and {result.index_folder}"
    console.print(f"written: {result.folder}{also}; query them with --where")


def print_select(result: SelectResult) -> None:
    """Print how many rows each step left, and where the chosen ones are."""
    console = open_console()
    for name, count in result.steps.items():
        console.print(f"{count:>14,}  {name}", style=None if name == "chosen" else "dim")
    print_files(result.output_folder, result.files, result.notes, is_new=result.is_new)


def print_report(result: ReportResult) -> None:
    """Print the main numbers, and where the page is."""
    console = open_console()
    there = ", ".join(f"{count:,} {name} embeddings" for name, count in result.embeddings.items())
    console.print(f"{counted(result.rows, 'row')}: {there}")
    if result.failures:
        console.print(f"{counted(sum(result.failures.values()), 'failure')} recorded")
    if result.mean_similarity is not None:
        console.print(f"mean cosine of picture and caption: {result.mean_similarity:.3f}")
    console.print(f"rows with a near-duplicate, by a sample: {result.near_duplicates:.1%}")
    console.print(f"written: {result.output_file}")
