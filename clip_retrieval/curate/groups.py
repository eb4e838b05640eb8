"""Groups of duplicates, as a table and as a page to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_retrieval.curate.config import DedupConfig
from clip_retrieval.curate.embedded import Embedded, Ids
from clip_retrieval.curate.output import GROUPS
from clip_retrieval.curate.page import Section, figure, write_page
from clip_retrieval.curate.pictures import shown_columns
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.layout import IMAGE_PATH
from clip_retrieval.metadata import make_array, number_array, text_array
from clip_retrieval.storage import Folder
from clip_retrieval.words import counted

BLOCK_ROWS = 1 << 14
SHOWN_MEMBERS = 24  # of a group in the sheet


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


def write_groups(target: Folder, groups: Groups, members: list[Embedded]) -> None:
    """Write groups.parquet: each group's kept row, then its duplicates."""
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


def write_sheet(target: Folder, groups: Groups, members: list[Embedded], config: DedupConfig) -> None:
    """Write index.html: the largest groups, the kept row of each first."""
    leaders, firsts, sizes = np.unique(groups.leaders, return_index=True, return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[: config.sheet_groups]
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
        sections.append(Section(f"Group {number}", note, figures, is_narrow=True))
    shown = f"The {len(largest):,} largest are shown. " if len(largest) < len(leaders) else ""
    total = members[0].row_count
    reasons = ", ".join(f"{groups.why.count(name):,} {name}" for name in sorted(set(groups.why)))
    limits = [f"cosine from {config.threshold:g}"] if "semantic" in config.by else []
    limits += [f"up to {config.max_bits} bits of pHash"] if "perceptual" in config.by else []
    told = f"{total - len(groups.rows):,} of {counted(total, 'row')} are kept, by {config.keep_by}. "
    told += f"Duplicates by {', '.join([*config.by, *limits])}{f': {reasons}' if reasons else ''}. "
    text = f"{told}{shown}Nothing was removed from the embeddings folder; {GROUPS} lists all groups."
    title = f"{counted(len(groups.rows), 'duplicate')} in {counted(len(leaders), 'group')}"
    write_page(target, SHEET, title, [Section("", text), *sections])
