"""Which ids the rows of parts get in a merged index, and which ids it has no row for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import PurePosixPath
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.listed_files import ListedFile, open_listed
from clip_retrieval.index.building.merged_files import empty_out
from clip_retrieval.layout import IndexFolder, Modality, about_index, read_manifest
from clip_retrieval.search.files import METRICS, open_file, read_places
from clip_retrieval.search.part_ids import MOST_READ, check_apart, pieces_of, tell_order
from clip_retrieval.search.settings import settings_of
from clip_retrieval.search.stored_settings import set_settings
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

GAPS_SHOWN = 3
NO_IDS = np.empty(0, np.int64)

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """The ids of a part: the smallest and the largest, whether they are explicit, and how many rows have one."""

    low: int
    high: int
    is_explicit: bool
    count: int

    @property
    def is_whole(self) -> bool:
        """Say whether every id from 0 to the largest has a row."""
        return self.low == 0 and self.count == self.high + 1


def read_spans(source: Folder, names: Sequence[str]) -> list[Span]:
    """Read the ids of parts; raises IndexBuildError if parts were not trained together, or ids cannot be rows."""
    first, spans = "", []
    for name in names:
        path = source.path(name)
        shell, span = open_shell(source, name)
        if span.low < 0:
            raise IndexBuildError(
                f"{path} has negative ids, from {span.low:,} on, which cannot be rows; build it again"
            )
        if span.count > span.high - span.low + 1:
            raise IndexBuildError(
                f"{path} has {span.count:,} rows under the ids {span.low:,} to {span.high:,}: some are there twice; "
                "build it again"
            )
        spans.append(span)
        set_settings(shell, dict.fromkeys(settings_of(shell), 1))  # parts may have been tuned differently
        print_of = hashlib.sha256(faiss.serialize_index(shell).tobytes()).hexdigest()
        first = first or print_of
        if print_of != first:
            raise IndexBuildError(
                f"{path} was not trained together with {names[0]}: their lists and codes mean different vectors; build "
                "one index of all embeddings"
            )
    return spans


def find_starts(
    source: Folder, names: Sequence[str], spans: Sequence[Span], modality: Modality | None = None
) -> list[int]:
    """Return the offset of each part's ids: 0 if the parts' ids differ already, else the number of rows before it.

    For index folders, the manifest says how many rows they have; for files in image.index, image.json says where the
    rows of each begin. Raises ClipRetrievalError if ids fit none of this.
    """
    is_explicit = spans[0].is_explicit
    known = read_counts(source, names, modality) if modality and is_explicit else None
    if known is not None and all(span.high < count for span, count in zip(spans, known, strict=True)):
        tell_order(source.url, names, None)
        return [0, *accumulate(known)][:-1]
    if is_explicit and all(a.high < b.low for a, b in pairwise(sorted(spans, key=lambda span: span.low))):
        return [0] * len(names)
    counted = [0, *accumulate(span.high + 1 for span in spans)][:-1]
    info = IndexFolder.info_name(modality) if modality and is_in_parts(names, modality) else None
    described = read_places(IndexFolder(source.url), modality) if modality and info else {}
    files = [PurePosixPath(name).name for name in names]
    if info and described.keys() >= set(files):
        said = [described[file] for file in files]
        check_apart(source.path(info), files, said, [(span.low, span.high) for span in spans])
        if not is_explicit and said != counted:
            raise IndexBuildError(
                f"{source.path(info)} says that the rows of files begin at {listed_rows(said)}; a merged index of this "
                f"kind has them at {listed_rows(counted)}, so ids would change: search the files without merging"
            )
        return said
    if any(span.low for span in spans):
        raise IndexBuildError(f"ids overlap in {source.url}: each part must begin at 0, or go on where another ends")
    for name, span in zip(names, spans, strict=True):
        if not span.is_whole:
            place = source.path(info) if info else "image.json next to it"
            raise IndexBuildError(
                f"{source.path(name)} has {span.count:,} rows under the ids 0 to {span.high:,}, and other files begin "
                "at 0 too: ids do not show where the rows of the next file begin; "
                f"{'say' if info else 'put the files into a folder image.index, and say'} where they do "
                f'(in {place}, "parts": [{{"file": "{files[0]}", "first_row": 0}}, …])'
            )
    tell_order(source.url, names, source.path(info) if info else None)
    return counted


def listed_rows(rows: Sequence[int]) -> str:
    return ", ".join(f"{row:,}" for row in rows)


def read_counts(source: Folder, names: Sequence[str], modality: Modality) -> list[int] | None:
    """Return the rows in the manifest of each part's index folder; None unless each part has its own folder."""
    counts: list[int] = []
    for name in names:
        path = PurePosixPath(name)
        if path.name != IndexFolder.index_name(modality):
            return None
        folder = IndexFolder(source.path(str(path.parent)))
        rows = about_index(read_manifest(folder), modality).get("rows")
        if rows is None:
            return None
        counts.append(rows)
    return counts


def is_in_parts(names: Sequence[str], modality: Modality) -> bool:
    return all(str(PurePosixPath(name).parent) == IndexFolder.index_name(modality) for name in names)


def open_shell(source: Folder, name: str) -> tuple[Any, Span]:
    """Return a part without its rows, and what ids they have; raises StorageError if the file is damaged."""
    path = source.path(name)
    listed = try_listed(path)
    if listed is not None and len(listed.sizes.nonzero()[0]):
        span = span_of(listed.read_ids())
        empty_out(listed.index)
        return listed.index, span
    shell = open_file(source, name, memory_map=True)
    span = id_span(shell, path)
    empty_out(shell)
    return shell, span


def try_listed(path: str) -> ListedFile | None:
    """Open a part of lists from its file; None if another way of opening it says more, or is needed."""
    try:
        listed = open_listed(path)
    except (RuntimeError, MemoryError, OSError):
        return None
    return listed if listed is not None and listed.index.metric_type in METRICS else None


def id_span(index: Any, path: str) -> Span:
    """Return the ids of a part; below a refinement they are positions."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return id_span(index.index, path)
    if index.ntotal == 0:
        raise IndexBuildError(f"{path} holds no rows; take it out of the folder")
    if not isinstance(index, faiss.IndexIVF):
        return Span(0, int(index.ntotal) - 1, is_explicit=False, count=int(index.ntotal))
    return span_of(pieces_of(index))


def span_of(pieces: Iterator[Ids]) -> Span:
    found = [(int(ids.min()), int(ids.max()), len(ids)) for ids in pieces if len(ids)]
    return Span(
        min(low for low, _, _ in found),
        max(high for _, high, _ in found),
        is_explicit=True,
        count=sum(count for _, _, count in found),
    )


def tell_lacking(
    source: Folder, names: Sequence[str], starts: Sequence[int], spans: Sequence[Span], empty_rows: Ids = NO_IDS
) -> None:
    """Log a line on the ids of a merged index without a row, except for rows that are known to have no embedding."""
    end = max(start + span.high + 1 for start, span in zip(starts, spans, strict=True))
    lacking = end - sum(span.count for span in spans)
    if lacking <= 0:
        return
    if end > MOST_READ:
        if lacking > len(empty_rows):
            logger.warning("the merged index has no row for %s of the ids 0 to %s", f"{lacking:,}", f"{end - 1:,}")
        return
    has_row = np.zeros(end, np.bool_)
    has_row[empty_rows[empty_rows < end]] = True
    for name, start, span in zip(names, starts, spans, strict=True):
        if span.count == span.high - span.low + 1:
            has_row[start + span.low : start + span.high + 1] = True
            continue
        listed = try_listed(source.path(name))
        for ids in pieces_of(open_file(source, name, memory_map=True)) if listed is None else listed.read_ids():
            has_row[start + ids] = True
    gaps = find_gaps(has_row)
    if gaps:
        shown = ", ".join(f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in gaps[:GAPS_SHOWN])
        logger.warning(
            "the merged index has no row for %s of the ids 0 to %s: %s%s",
            f"{int((~has_row).sum()):,}", f"{end - 1:,}", shown, ", …" if len(gaps) > GAPS_SHOWN else "",
        )  # fmt: skip


def find_gaps(has_row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and last place of each run that is False."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], has_row, [True]]).astype(np.int8)))
    return [(int(low), int(stop) - 1) for low, stop in zip(edges[::2], edges[1::2], strict=True)]
