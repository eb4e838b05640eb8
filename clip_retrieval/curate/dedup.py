"""The whole of `dedup`: rows, likeness, the cover, and files that tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_retrieval.curate.config import DedupConfig
from clip_retrieval.curate.cover import Order, cover
from clip_retrieval.curate.embedded import Embedded, Ids, Pool, exact_cosines, identity, opened
from clip_retrieval.curate.likeness import Likeness, Recall, find_likeness
from clip_retrieval.curate.output import GROUPS, RECIPE, Job, about_folder, begin_folder, claim_folder, write_recipe
from clip_retrieval.curate.page import Section, figure, write_page
from clip_retrieval.curate.pairs import Compare
from clip_retrieval.curate.pictures import shown_columns
from clip_retrieval.curate.scan import scan
from clip_retrieval.curate.subset import check_forms, write_subset
from clip_retrieval.curate.workspace import open_workspace
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.layout import IMAGE_PATH
from clip_retrieval.metadata import make_array, number_array, text_array
from clip_retrieval.options import parse_bytes, to_json
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder
from clip_retrieval.words import bound_above, counted

COMMAND = "dedup"
ROW_BYTES, PAIR_BYTES = 120, 160  # in memory, with what sorting them takes
BLOCK_ROWS = 1 << 14
SHOWN_MEMBERS = 24  # of a group in the sheet
WIDTH, HEIGHT = "width", "height"


@dataclass(frozen=True, kw_only=True)
class DedupResult:
    """What was found, and where it was written."""

    rows: int
    compared: int  # rows that have an embedding
    groups: int
    duplicates: int  # rows that are not kept
    kept: int
    reasons: dict[str, int]
    threshold: float
    unread: int  # rows without a picture that could be read, where pictures were compared
    blocks: int
    is_exact: bool
    recall: Recall | None
    output_folder: str
    files: list[str]
    notes: list[str]
    is_new: bool = True  # False: an earlier run has written it, and nothing was done

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, outcome: Mapping[str, Any]) -> DedupResult:
        """Return the result that an earlier run wrote down."""
        named = {field.name: outcome[field.name] for field in fields(cls) if field.name in outcome}
        recall = None if outcome["recall"] is None else Recall(**outcome["recall"])
        return cls(**{**named, "recall": recall, "is_new": False})


@dataclass(frozen=True, eq=False)
class Groups:
    """The duplicates [n], each with the kept row that covers it, by group."""

    rows: Ids
    leaders: Ids
    why: list[str]
    similarities: NDArray[np.float64]

    @property
    def count(self) -> int:
        return len(np.unique(self.leaders))


def run_dedup(config: DedupConfig) -> DedupResult:
    """Find the duplicates of a folder, choose which are kept, and write both; the folder itself stays as it is."""
    with ExitStack() as stack:
        members = [stack.enter_context(opened(config.embeddings_folder, config.rows.modality))]
        if config.against is not None:
            members.append(stack.enter_context(opened(config.against, config.rows.modality)))
            check_same_model(*members)
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
    order = order_rows(members, config.keep_by)
    target = Folder(config.output_folder)
    job = Job(COMMAND, config, members)
    earlier = claim_folder(target, job)
    if earlier is not None:
        return DedupResult.from_json(earlier)
    with only_one(target):
        boundary = members[0].row_count if config.against is not None else None
        compare = Compare(config.threshold, order.rank, boundary, (memory - ROW_BYTES * row_count) // PAIR_BYTES)
        return find_and_write(job, order, compare, target)


def check_same_model(own: Embedded, other: Embedded) -> None:
    """Raise ConfigError where two folders cannot be compared."""
    if own.folder.place == other.folder.place:
        raise ConfigError("--against names the folder itself; leave it out to find the duplicates within it")
    if own.vectors.dim != other.vectors.dim:
        raise ConfigError(
            f"{other.folder.url} has {other.vectors.dim} dimensions, {own.folder.url} has {own.vectors.dim}; "
            "compare embeddings of one model"
        )
    models = [about_folder(member.folder, 0)["model_fingerprint"] for member in (own, other)]
    if all(models) and models[0] != models[1]:
        raise ConfigError(f"{other.folder.url} was embedded with another model than {own.folder.url}; embed it anew")


def order_rows(members: list[Embedded], keep_by: str) -> Order:
    """Return the order in which rows are kept; those of `--against` come first."""
    own = members[0]
    if keep_by == "order":
        values = np.zeros(own.row_count)
    elif keep_by == "size":
        missing = {WIDTH, HEIGHT} - set(own.column_names)
        if missing:
            raise ConfigError(
                f"--keep_by size needs the columns {WIDTH} and {HEIGHT}, which {own.folder.url} has not; "
                "embed with --enable_metadata True, or keep by order"
            )
        values = -own.numbers(WIDTH, "keep_by") * own.numbers(HEIGHT, "keep_by")
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
    with open_workspace(target, key) as work:
        scanned = scan(pool, work, own.row_count)
        likeness = find_likeness(members, config, scanned, compare, work)
        leaders = cover(order, likeness.relations, likeness.more)
        groups = gather(pool, leaders[: own.row_count], likeness)
        kept = np.flatnonzero(leaders[: own.row_count] == np.arange(own.row_count))
        begin_folder(target, job)
        write_groups(target, groups, members)
        files = [GROUPS]
        if config.sheet_groups:
            write_sheet(target, groups, members, config.sheet_groups)
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
            notes=written.notes,
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


def write_groups(target: Folder, groups: Groups, members: list[Embedded]) -> None:
    """Write groups.parquet: each group's kept row, then those that it stands for."""
    schema = pa.schema(
        [
            ("cluster", pa.int64()),
            ("id", pa.int64()),
            (IMAGE_PATH, pa.string()),
            ("kept", pa.bool_()),
            ("why", pa.string()),
            ("similarity", pa.float64()),
        ]
    )
    if len(members) > 1:
        schema = schema.append(pa.field("in_other", pa.bool_()))
    with target.staged(GROUPS) as staged, pq.ParquetWriter(staged, schema) as writer:
        writer.write_table(schema.empty_table())
        for table in tables_of(groups, members, schema):
            writer.write_table(table)


def tables_of(groups: Groups, members: list[Embedded], schema: pa.Schema) -> Iterator[pa.Table]:
    kept, firsts, clusters = np.unique(groups.leaders, return_index=True, return_inverse=True)
    rows = np.insert(groups.rows, firsts, kept)
    is_kept = np.insert(np.zeros(len(groups.rows), np.bool_), firsts, values=True)
    numbers = np.insert(clusters, firsts, np.arange(len(kept)))
    why = np.insert(np.array(groups.why, dtype=object), firsts, "")
    similarities = np.insert(groups.similarities, firsts, 1.0)
    own = members[0].row_count
    for start in range(0, len(rows), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        some = rows[part]
        columns = {
            "cluster": number_array(numbers[part]),
            "id": number_array(np.where(some < own, some, some - own)),
            IMAGE_PATH: text_array(paths_of(members, some)),
            "kept": make_array(is_kept[part].tolist(), pa.bool_()),
            "why": text_array([reason or None for reason in why[part]]),
            "similarity": pa.array(similarities[part], from_pandas=True),  # NaN is null
            "in_other": make_array((some >= own).tolist(), pa.bool_()),
        }
        yield pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def paths_of(members: list[Embedded], rows: Ids) -> list[str | None]:
    return [row.get(IMAGE_PATH) for row in rows_with(members, rows, [IMAGE_PATH])]


def rows_with(members: list[Embedded], rows: Ids, columns: list[str]) -> list[dict[str, Any]]:
    """Return metadata of rows by number over all folders, in their order."""
    found: list[dict[str, Any]] = [{} for _ in rows]
    first = 0
    for member in members:
        here = np.flatnonzero((rows >= first) & (rows < first + member.row_count))
        names = [name for name in columns if name in member.column_names]
        if member.metadata is not None and names and len(here):
            values = member.metadata.rows(rows[here] - first, names).to_pylist()
            for place, value in zip(here.tolist(), values, strict=True):
                found[place] = value
        first += member.row_count
    return found


def write_sheet(target: Folder, groups: Groups, members: list[Embedded], most: int) -> None:
    """Write index.html: the largest groups, the kept row of each first."""
    leaders, firsts, sizes = np.unique(groups.leaders, return_index=True, return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:most]
    names = [*dict.fromkeys(name for member in members for name in shown_columns(member))]
    sections = []
    for number in largest.tolist():
        part = slice(int(firsts[number]), int(firsts[number]) + min(SHOWN_MEMBERS, int(sizes[number])))
        rows = np.concatenate([leaders[number : number + 1], groups.rows[part]])
        kept, *others = rows_with(members, rows, names)
        figures = [figure(kept, "kept")]
        for row, why, similarity in zip(others, groups.why[part], groups.similarities[part].tolist(), strict=True):
            figures.append(figure(row, why, None if np.isnan(similarity) else similarity))
        left = int(sizes[number]) - len(others)
        note = f"{counted(int(sizes[number]), 'duplicate')}" + (f", {left:,} not shown" if left else "")
        sections.append(Section(f"Group {number}", note, figures))
    shown = f"The {len(largest):,} largest are shown. " if len(largest) < len(leaders) else ""
    text = f"{shown}Nothing was removed from the embeddings folder; {GROUPS} lists all groups."
    title = f"{counted(len(groups.rows), 'duplicate')} in {counted(len(leaders), 'group')}"
    write_page(target, SHEET, title, [Section("", text), *sections])
