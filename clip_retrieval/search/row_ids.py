"""Whether the ids in an index can be rows: not negative, each once in a file, and none beyond the rows that there are.

Files of our own builds are not asked: checksums in their manifest say that they are as they were written.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_retrieval.errors import StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.part_ids import MOST_READ, Ids, find_repeated, is_id_map, pieces_of
from clip_retrieval.search.tree import has_ids

logger = logging.getLogger(__name__)

IDS_CHECKED = 1 << 16  # rows in lists whose ids are all read: some milliseconds of a mapped file
LISTS_CHECKED = 256  # inverted lists of a larger file whose first and last ids are read: a millisecond or two
HOW = "ids are numbers of rows, from 0 on: build the index again with those"


def check_ids(folder: IndexFolder, parts: Sequence[OpenPart], rows: int | None) -> None:
    """Raise StorageError where ids of a file cannot be rows; `rows` are those in the manifest, if it has any."""
    last, where = -1, ""
    for part in parts:
        if not has_ids(part.index):
            continue
        path = folder.path(part.name)
        high = check_file(path, part.index) + part.first_row
        if high > last:
            last, where = high, path
    held = sum(int(part.index.ntotal) for part in parts)
    if last < (held if rows is None else rows):
        return
    of_what = "rows in the manifest"
    if rows is None:  # reading the metadata takes a while: only now
        from clip_retrieval.metadata import count_rows

        rows, of_what = count_rows(folder), "rows of metadata"
    if rows is not None and last >= rows:
        raise StorageError(f"{where} has ids up to {last:,}, and there are {rows:,} {of_what}; {HOW}")
    if rows is None and last >= 2 * held:  # below, some rows may have been removed
        logger.warning(
            "%s has ids up to %s of %s rows: these are no numbers of rows, and hits have them as they are",
            where, f"{last:,}", f"{held:,}",
        )  # fmt: skip


def check_file(path: str, index: Any) -> int:
    """Return the largest id of a file, -1 where it is empty; of large lists as far as their ends tell."""
    is_map, count = is_id_map(index), int(index.ntotal)
    is_whole = count <= (MOST_READ if is_map else IDS_CHECKED)
    pieces = list(pieces_of(index, None if is_whole else LISTS_CHECKED))
    if not pieces:
        return -1
    ids = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    low, high = int(ids.min()), int(ids.max())
    if low < 0:
        raise StorageError(f"{path} has negative ids, from {low:,} on; {HOW}")
    twice = find_twice(ids, high) if is_whole else None
    if twice is not None:
        raise StorageError(f"{path} has the id {twice:,} twice; {HOW}")
    return high


def find_twice(ids: Ids, high: int) -> int | None:
    """Return the first id that is there twice: a table of all ids that there may be takes a tenth of a sort."""
    if (ids[1:] > ids[:-1]).all():  # as is usual
        return None
    if high < 8 * len(ids):
        seen = np.zeros(high + 1, np.bool_)
        seen[ids] = True
        if np.count_nonzero(seen) == len(ids):
            return None
    return find_repeated([ids])
