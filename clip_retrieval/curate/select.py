"""The whole of `select`: conditions, quotas and diversity to a subset, with its recipe."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from clip_retrieval.curate.charts import table
from clip_retrieval.curate.config import SelectConfig
from clip_retrieval.curate.diverse import choose_far
from clip_retrieval.curate.embedded import Embedded, Ids, identity, opened
from clip_retrieval.curate.output import (
    RECIPE,
    FolderResult,
    Job,
    about_folder,
    begin_folder,
    claim_folder,
    removed_if_empty,
    write_recipe,
)
from clip_retrieval.curate.page import Section, figure, write_page
from clip_retrieval.curate.pictures import shown_columns
from clip_retrieval.curate.subset import check_forms, write_subset
from clip_retrieval.curate.workspace import Workspace, open_workspace
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.options import to_json
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder
from clip_retrieval.tools.inputs import read_lines
from clip_retrieval.words import counted, with_article

COMMAND = "select"
STEPS = ("ids", "where", "top", "per_cluster", "balance", "count", "diverse")  # options, in their order
CONDITION_SECONDS = 600.0  # over whole data sets


@dataclass(frozen=True, kw_only=True)
class SelectResult(FolderResult):
    """What was chosen, and where it was written."""

    rows: int
    chosen: int
    steps: dict[str, int]  # rows that were left after each step


@dataclass(frozen=True)
class Said:
    """What the steps report."""

    steps: dict[str, int]
    notes: list[str]


def run_select(config: SelectConfig) -> SelectResult:
    """Choose rows, and write them; the embeddings folder is not changed."""
    with (
        opened(config.embeddings_folder, config.rows.modality) as embedded,
        removed_if_empty(Folder(config.output_folder)),
    ):
        return choose_and_write(embedded, config)


def choose_and_write(embedded: Embedded, config: SelectConfig) -> SelectResult:
    check_forms(embedded, config.written.write)
    check_columns(embedded, config)
    target = Folder(config.output_folder)
    job = Job(COMMAND, config, [embedded])
    earlier = claim_folder(target, job)
    if earlier is not None:
        return SelectResult.from_json(earlier)
    with only_one(target):
        steps, notes = {"rows": embedded.row_count}, list[str]()
        ids = candidates(embedded, config, steps, notes)
        ids = rank(embedded, ids, config.top)
        if config.per_cluster is not None:
            ids = limit_clusters(embedded, ids, config, notes)
            steps["per_cluster"] = len(ids)
        if not len(ids):
            left = ", ".join(
                f"{count:,} {'in all' if name == 'rows' else f'after --{name}'}" for name, count in steps.items()
            )
            raise SourceError(f"no row of {config.embeddings_folder} is left ({left}); loosen the conditions")
        options = to_json(config)
        key = {
            "options": [options[name] for name in (*STEPS, "cluster_column")],
            "input": about_folder(embedded.folder, embedded.row_count),
        }
        key["files"] = identity(embedded.vectors)
        key["candidates"] = [len(ids), int(ids.sum())]
        with open_workspace(target, key, overwrite=config.written.overwrite) as work:
            chosen = choose(embedded, ids, config, work)
            steps["chosen"] = len(chosen)
            result = write(job, chosen, config, target, Said(steps, notes))
    target.remove_leftovers()
    return result


def check_columns(embedded: Embedded, config: SelectConfig) -> None:
    """Raise ConfigError if a column is missing, before any work."""
    if config.per_cluster is not None and config.cluster_column not in embedded.column_names:
        raise ConfigError(
            f"--per_cluster needs the column {config.cluster_column}, which {embedded.folder.url} does not have; "
            "`clip-retrieval label --clusters N` makes it, or name another with --cluster_column"
        )
    if config.balance is not None:
        embedded.check_column(config.balance, "balance")
    if config.top is not None:
        embedded.numbers(config.top.removeprefix("-"), "top")
    if config.where is not None and embedded.metadata is None:
        raise ConfigError(f"--where needs metadata, and {embedded.folder.url} has none")
    if config.ids is not None and not Path(config.ids).is_file():
        raise ConfigError(f"--ids {config.ids} is not there; name a file with one row id per line")


def candidates(embedded: Embedded, config: SelectConfig, steps: dict[str, int], notes: list[str]) -> Ids:
    """Return the ids that meet the conditions, ascending, without empty rows."""
    ids = np.arange(embedded.row_count)
    if config.ids is not None:
        ids = read_ids(config.ids, embedded.row_count)
        steps["ids"] = len(ids)
    if config.where is not None:
        assert embedded.metadata is not None
        from clip_retrieval.query.predicates import rows_where  # noqa: PLC0415 -- loads DuckDB

        met = rows_where(embedded.metadata, config.where, seconds=CONDITION_SECONDS)
        ids = np.intersect1d(ids, met, assume_unique=True)
        steps["where"] = len(ids)
    left, gone = embedded.without_empty(ids)
    notes += gone
    return left


def read_ids(path: str, row_count: int) -> Ids:
    lines = read_lines(path)
    wrong = next((line for line in lines if not line.isdecimal() or int(line) >= row_count), None)
    if wrong is not None:
        raise ConfigError(f"{path} holds {wrong[:40]!r}, which is not one of the {row_count:,} rows")
    return np.unique(np.array(lines, np.int64))


def rank(embedded: Embedded, ids: Ids, top: str | None) -> Ids:
    """Return the ids, best first: by a column, null last, else in row order."""
    if top is None:
        return ids
    values = embedded.numbers(top.removeprefix("-"), "top")[ids] * (1 if top.startswith("-") else -1)
    ranked: Ids = ids[np.lexsort((ids, values))]
    return ranked


def number_groups(embedded: Embedded, ids: Ids, column: str) -> Ids:
    """Return the number of each row's value of a column, -1 for null."""
    assert embedded.metadata is not None
    values = embedded.metadata.columns([column])[column].combine_chunks().take(pa.array(ids)).dictionary_encode()
    found: Ids = values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def places_in_group(groups: Ids) -> Ids:
    """Return for each row how many rows of its group come before it."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.repeat(starts, np.diff([*starts, len(groups)]))
    return places


def limit_clusters(embedded: Embedded, ids: Ids, config: SelectConfig, notes: list[str]) -> Ids:
    """Return the first rows of each cluster; rows without a cluster are left out."""
    assert config.per_cluster is not None
    groups = number_groups(embedded, ids, config.cluster_column)
    without = int((groups < 0).sum())
    if without:
        notes.append(f"{counted(without, 'row')} without {with_article(config.cluster_column)}: left out")
    return ids[(groups >= 0) & (places_in_group(groups) < config.per_cluster)]


def share_out(sizes: Iterable[int], count: int | None) -> list[int]:
    """Return how many rows each group gives: equally many, as far as it has them; a remainder goes to the first."""
    sizes = list(sizes)
    if count is None:
        return [min(sizes)] * len(sizes)
    level = bisect_right(range(max(sizes) + 1), count, key=lambda most: sum(min(size, most) for size in sizes)) - 1
    quotas = [min(size, level) for size in sizes]
    open_groups = [group for group, size in enumerate(sizes) if size > level]
    for group in open_groups[: count - sum(quotas)]:
        quotas[group] += 1
    return quotas


def choose(embedded: Embedded, ids: Ids, config: SelectConfig, work: Workspace) -> Ids:
    """Return the chosen ids, ascending."""
    where_far = work if config.diverse else None
    if config.balance is None:
        return pick(embedded, ids, config.count or len(ids), where_far, "all")
    groups = number_groups(embedded, ids, config.balance)
    values = np.unique(groups)
    members = [ids[groups == value] for value in values]
    quotas = share_out(map(len, members), config.count)
    chosen = [
        pick(embedded, some, quota, where_far, f"of_{value}")
        for value, some, quota in zip(values.tolist(), members, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def pick(embedded: Embedded, ids: Ids, count: int, work: Workspace | None, name: str) -> Ids:
    """Return some of the ids, ascending: the first ones or, with a workspace, the ones that differ most."""
    if work is not None and count < len(ids):
        return choose_far(embedded, ids, count, work, name)
    return np.sort(ids[:count])


def write(job: Job, chosen: Ids, config: SelectConfig, target: Folder, said: Said) -> SelectResult:
    embedded = job.sources[0]
    begin_folder(target, job)
    has_sheet = config.sheet_rows > 0 and embedded.metadata is not None
    if has_sheet:
        write_sheet(job, chosen, target, said)
    written = write_subset(embedded, chosen, config.written.write, target)
    result = SelectResult(
        rows=embedded.row_count,
        chosen=len(chosen),
        steps=said.steps,
        output_folder=target.url,
        files=[*([SHEET] if has_sheet else []), *written.files, RECIPE],
        notes=[*said.notes, *written.notes],
    )
    about = about_folder(embedded.folder, embedded.row_count)
    write_recipe(target, job, {"embeddings": about, **result.to_json()})
    return result


def write_sheet(job: Job, chosen: Ids, target: Folder, said: Said) -> None:
    """Write index.html with some of the chosen rows, evenly spread, in the order of `top`."""
    embedded, config = job.sources[0], job.config
    assert embedded.metadata is not None
    assert isinstance(config, SelectConfig)
    most = config.sheet_rows
    chosen = rank(embedded, chosen, config.top)
    shown = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(np.int64))]
    rows = embedded.metadata.rows(shown, shown_columns(embedded)).to_pylist()
    figures = [figure(row, str(number)) for row, number in zip(rows, shown.tolist(), strict=True)]
    order = f", by {config.top}, the best first" if config.top is not None else ", in row order"
    note = f"{len(shown):,} are shown{', evenly spread' if len(shown) < len(chosen) else ''}{order}."
    own = {name: getattr(config, name) for name in STEPS}
    given = [(f"--{name}", str(value)) for name, value in own.items() if value is not None and value is not False]
    steps = [
        (name if name in ("rows", "chosen") else f"after --{name}", f"{count:,}") for name, count in said.steps.items()
    ]
    title = f"{len(chosen):,} of {counted(embedded.row_count, 'row')}"
    write_page(target, SHEET, title, [Section("", body=table([*given, *steps])), Section("", note, figures)])
