"""Whether the ids in an index can be rows: not negative, each once, and none beyond the existing rows.

All ids are read, in 0.3 s of CPU time for 10 million rows in mapped lists, but only some for an index with more
than MOST_READ rows. Files of our own builds are not checked here: checksums in their manifest show that they are
unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from clip_retrieval.errors import StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.files import OpenPart
from clip_retrieval.search.part_ids import MOST_READ, Ids, find_repeated, find_shared, is_id_map, pieces_of
from clip_retrieval.search.tree import has_ids

logger = logging.getLogger(__name__)

LISTS_CHECKED = 256  # inverted lists of a larger file whose first and last ids are read: in one or two milliseconds
HOW = "ids are row numbers, from 0 on: build the index again with these"


def check_ids(folder: IndexFolder, parts: Sequence[OpenPart], rows: int | None) -> None:
    """Raise StorageError if ids of a file cannot be rows; `rows` is their number in the manifest, if it has one."""
    held = sum(int(part.index.ntotal) for part in parts)
    is_whole = held <= MOST_READ
    last, where = -1, ""
    read: dict[str, Ids] = {}  # the rows of each file
    for part in parts:
        path = folder.path(part.name)
        if has_ids(part.index):
            ids = read_ids(path, part.index, is_whole=is_whole)
            high = int(ids.max(initial=-1)) + part.first_row
            if high > last:
                last, where = high, path
        else:
            ids = np.arange(int(part.index.ntotal) if is_whole else 0)
        if is_whole:
            read[path] = ids + part.first_row
    check_shared(read)
    if last >= (held if rows is None else rows):
        check_last(folder, where, last, held, rows)


def check_last(folder: IndexFolder, where: str, last: int, held: int, rows: int | None) -> None:
    """Raise StorageError if the largest id of a file is beyond the number of rows in the folder."""
    of_what = "rows in the manifest"
    if rows is None:  # reading the metadata takes a while: only now
        from clip_retrieval.metadata import count_rows

        rows, of_what = count_rows(folder), "rows of metadata"
    if rows is not None and last >= rows:
        raise StorageError(f"{where} has ids up to {last:,}, and there are {rows:,} {of_what}; {HOW}")
    if rows is None and last >= 2 * held:  # below, some rows may have been removed
        logger.warning(
            "%s has ids up to %s for %s rows: these are not row numbers, and hits have them unchanged",
            where, f"{last:,}", f"{held:,}",
        )  # fmt: skip


def read_ids(path: str, index: Any, *, is_whole: bool) -> Ids:
    """Return the ids of a file: all, or only the ends of some lists, which show much in one or two milliseconds.

    Raises StorageError if one is negative or occurs twice.
    """
    is_whole = is_whole or (is_id_map(index) and index.ntotal <= MOST_READ)  # an array in memory
    ids: Ids = np.concatenate([np.empty(0, np.int64), *pieces_of(index, None if is_whole else LISTS_CHECKED)])
    if not len(ids):
        return ids
    low, high = int(ids.min()), int(ids.max())
    if low < 0:
        raise StorageError(f"{path} has negative ids, from {low:,} on; {HOW}")
    twice = find_twice(ids, high) if is_whole else None
    if twice is not None:
        raise StorageError(f"{path} has the id {twice:,} twice; {HOW}")
    return ids


def check_shared(read: Mapping[str, Ids]) -> None:
    """Raise StorageError if two files have a row in common; `read` are the rows of each by its path."""
    spans = sorted((int(ids.min()), int(ids.max())) for ids in read.values() if len(ids))
    if all(before[1] < after[0] for before, after in pairwise(spans)):
        return
    held = list(read.values())
    if find_twice(np.concatenate(held), max(high for _, high in spans)) is None:
        return
    shared = find_shared(held)
    assert shared is not None
    one, other, row = shared
    raise StorageError(f"{list(read)[one]} and {list(read)[other]} both have a row {row:,}; {HOW}")


def find_twice(ids: Ids, high: int) -> int | None:
    """Return the first id that occurs twice; a table of all possible ids takes a tenth of the time of a sort."""
    if (ids[1:] > ids[:-1]).all():  # the usual case
        return None
    if high < 8 * len(ids):
        seen = np.zeros(high + 1, np.bool_)
        seen[ids] = True
        if np.count_nonzero(seen) == len(ids):
            return None
    return find_repeated([ids])
