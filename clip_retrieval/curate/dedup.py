"""The whole of `dedup`: rows, likeness, the cover, and the files that report it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from clip_retrieval.curate.config import DedupConfig
from clip_retrieval.curate.cover import Order, cover
from clip_retrieval.curate.embedded import Embedded, Ids, Pool, exact_cosines, identity, opened
from clip_retrieval.curate.groups import BLOCK_ROWS, Groups, write_groups, write_sheet
from clip_retrieval.curate.likeness import Likeness, Recall, find_likeness
from clip_retrieval.curate.output import (
    GROUPS,
    RECIPE,
    FolderResult,
    Job,
    about_folder,
    begin_folder,
    claim_folder,
    removed_if_empty,
    write_recipe,
)
from clip_retrieval.curate.pictures import find_sizes, has_sizes
from clip_retrieval.curate.scan import scan
from clip_retrieval.curate.subset import check_forms, write_subset
from clip_retrieval.curate.tiles import Compare
from clip_retrieval.curate.workspace import open_workspace
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.layout import IMAGE_PATH
from clip_retrieval.options import parse_bytes, to_json
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder
from clip_retrieval.words import bound_above, counted

COMMAND = "dedup"
ROW_BYTES, PAIR_BYTES = 120, 160  # in memory, with what sorting them takes


@dataclass(frozen=True, kw_only=True)
class DedupResult(FolderResult):
    """What was found, and where it was written."""

    rows: int
    compared: int  # rows that have an embedding
    groups: int
    duplicates: int  # rows that are not kept
    kept: int
    reasons: dict[str, int]
    threshold: float
    unread: int  # rows whose picture could not be read, if pictures were compared
    blocks: int
    is_exact: bool
    recall: Recall | None

    @classmethod
    def from_json(cls, outcome: Mapping[str, Any]) -> Self:
        recall = None if outcome["recall"] is None else Recall(**outcome["recall"])
        return super().from_json({**outcome, "recall": recall})


def run_dedup(config: DedupConfig) -> DedupResult:
    """Find the duplicates of a folder, choose which are kept, and write both; the folder itself is not changed."""
    with ExitStack() as stack:
        members = [stack.enter_context(opened(config.embeddings_folder, config.rows.modality))]
        if config.against is not None:
            members.append(stack.enter_context(opened(config.against, config.rows.modality)))
            check_same_model(*members)
        with removed_if_empty(Folder(config.output_folder)):
            return dedup(members, config)


def dedup(members: list[Embedded], config: DedupConfig) -> DedupResult:
    """Check what can be checked before long work, and do it."""
    check_forms(members[0], config.written.write)
    row_count = sum(member.row_count for member in members)
    memory = parse_bytes(config.max_memory)
    if memory < 2 * ROW_BYTES * row_count:
        raise ConfigError(
            f"max_memory {config.max_memory} is too little for {counted(row_count, 'row')}; "
            f"give {bound_above(2 * ROW_BYTES * row_count)} or more"
        )
    check_keep_by(members[0], config.keep_by)
    target = Folder(config.output_folder)
    job = Job(COMMAND, config, members)
    earlier = claim_folder(target, job)
    if earlier is not None:
        return DedupResult.from_json(earlier)
    order = order_rows(members, config.keep_by)
    with only_one(target):
        boundary = members[0].row_count if config.against is not None else None
        compare = Compare(config.threshold, order.rank, boundary, (memory - ROW_BYTES * row_count) // PAIR_BYTES)
        return find_and_write(job, order, compare, target)


def check_same_model(own: Embedded, other: Embedded) -> None:
    """Raise ConfigError if two folders cannot be compared."""
    if own.folder.place == other.folder.place:
        raise ConfigError("--against names the folder itself; leave it out to find the duplicates within it")
    if own.vectors.dim != other.vectors.dim:
        raise ConfigError(
            f"{other.folder.url} has {other.vectors.dim} dimensions, {own.folder.url} has {own.vectors.dim}; "
            "compare embeddings of one model"
        )
    models = [about_folder(member.folder, 0)["model_fingerprint"] for member in (own, other)]
    if all(models) and models[0] != models[1]:
        raise ConfigError(f"{other.folder.url} was embedded with another model than {own.folder.url}; embed it again")


def check_keep_by(own: Embedded, keep_by: str) -> None:
    """Raise ConfigError, before the pictures are measured, if rows cannot be ordered this way."""
    if keep_by == "size":
        if not has_sizes(own) and IMAGE_PATH not in own.column_names:
            raise ConfigError(
                f"--keep_by size needs pictures, or columns width and height, and {own.folder.url} has neither; "
                "keep by order"
            )
    elif keep_by != "order":
        own.numbers(keep_by.removeprefix("-"), "keep_by")


def order_rows(members: list[Embedded], keep_by: str) -> Order:
    """Return the order in which rows are kept; rows of `--against` come first."""
    own = members[0]
    if keep_by == "order":
        values = np.zeros(own.row_count)
    elif keep_by == "size":
        values = -find_sizes(own)
    else:
        values = own.numbers(keep_by.removeprefix("-"), "keep_by") * (1 if keep_by.startswith("-") else -1)
    first = np.lexsort((np.arange(own.row_count), values))  # NaN comes last
    others = sum(member.row_count for member in members[1:])
    rows = np.concatenate([np.arange(own.row_count, own.row_count + others), first])
    return Order.of(rows, own.row_count if others else None)


def find_and_write(job: Job, order: Order, compare: Compare, target: Folder) -> DedupResult:
    members, config = list(job.sources), job.config
    assert isinstance(config, DedupConfig)
    own = members[0]
    pool = Pool([member.vectors for member in members])
    options = to_json(config)
    key = {
        "options": {name: options[name] for name in ("threshold", "by", "max_bits", "exact", "blocks", "keep_by")},
        "memory": config.max_memory,
        "folders": [[about_folder(m.folder, m.row_count), identity(m.vectors)] for m in members],
    }
    with open_workspace(target, key, overwrite=config.written.overwrite) as work:
        scanned = scan(pool, work, own.row_count)
        likeness = find_likeness(members, config, scanned, compare, work)
        leaders = cover(order, likeness.relations, likeness.more)
        groups = gather(pool, leaders[: own.row_count], likeness)
        kept, notes = own.without_empty(np.flatnonzero(leaders[: own.row_count] == np.arange(own.row_count)))
        begin_folder(target, job)
        write_groups(target, groups, members)
        files = [GROUPS]
        if config.sheet_groups:
            write_sheet(target, groups, members, config)
            files.append(SHEET)
        written = write_subset(own, kept, config.written.write, target)
        result = DedupResult(
            rows=own.row_count,
            compared=int((scanned.classes[: own.row_count] >= 0).sum()),
            groups=groups.count,
            duplicates=len(groups.rows),
            kept=len(kept),
            reasons={name: groups.why.count(name) for name in sorted(set(groups.why))},
            threshold=config.threshold,
            unread=likeness.count_unread(own.row_count),
            blocks=likeness.blocks,
            is_exact=likeness.is_exact,
            recall=likeness.recall,
            output_folder=target.url,
            files=[*files, *written.files, RECIPE],
            notes=[*notes, *written.notes],
        )
        about = [about_folder(member.folder, member.row_count) for member in members]
        write_recipe(target, job, {"embeddings": about, **result.to_json()})
    target.remove_leftovers()
    return result


def gather(pool: Pool, leaders: Ids, likeness: Likeness) -> Groups:
    """Return the duplicates by group, groups in the order of the rows that are kept."""
    rows = np.flatnonzero(leaders != np.arange(len(leaders)))
    rows = rows[np.lexsort((rows, leaders[rows]))]
    theirs = leaders[rows]
    similarities = np.empty(len(rows), np.float64)
    with np.errstate(invalid="ignore"):  # rows without an embedding, whose pictures are the same
        for start in range(0, len(rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            similarities[part] = exact_cosines(pool.rows(rows[part]), pool.rows(theirs[part]))
    return Groups(rows, theirs, likeness.why(rows, theirs, pool), similarities)
