"""Which rows the files of a folder hold: in files of one build ids count through, in others each begins at 0.

All ids are read only if a sample fits both cases: a search opens many folders, and 8 bytes per row are much to read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import StorageError
from clip_retrieval.search.tree import has_ids

logger = logging.getLogger(__name__)

LISTS_READ = 1_024  # inverted lists of a file whose ids are read: 2 ms, or 8 for a mapped file
ENDS_READ = 128  # ids at either end of such a list
IDS_READ = 1 << 18  # ids of an id map that are read
MOST_READ = 20_000_000  # rows of all files whose ids are read if some are equal: it takes seconds
ENDLESS = np.iinfo(np.int64).max
NAMES_SHOWN = 4

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Named:
    """The names of files in a folder, and the json file that may say where their rows begin."""

    path: str
    names: Sequence[str]
    info: str

    def refuse(self, what: str) -> StorageError:
        return StorageError(
            f'{what}; say in {self.info} where the rows of each file begin ("parts": [{{"file": "{self.names[0]}", '
            '"first_row": 0}, …]), or build one index of all embeddings'
        )


def find_first_rows(named: Named, indices: Sequence[Any], described: Mapping[str, int]) -> list[int]:
    """Return the offset of the ids of each file: 0 if they are already ids of the whole index.

    Raises StorageError if ids do not distinguish rows, or contradict the json file.
    """
    ends = list(accumulate(int(index.ntotal) for index in indices))
    starts = [0, *ends[:-1]]
    with_ids = [i for i, index in enumerate(indices) if has_ids(index)]
    if len(indices) == len(with_ids) == 1:
        return [0]
    if described:
        starts = [read_place(named, name, described) for name in named.names]
    if not with_ids:
        if described:
            check_apart(named.info, named.names, starts, [count_up(index) for index in indices])
        return starts
    held = [read_some(index) + (0 if i in with_ids else starts[i]) for i, index in enumerate(indices)]
    is_global = fit_described(named, indices, held, starts) if described else fit_each_other(named, indices, held)
    firsts = [0 if i in with_ids and is_global[i] else start for i, start in enumerate(starts)]
    if described:
        spans = [
            ((int(ids.min()), int(ids.max())) if len(ids) else None) if i in with_ids else count_up(indices[i])
            for i, ids in enumerate(held)
        ]
        check_apart(named.info, named.names, firsts, spans)
    return firsts


def count_up(index: Any) -> tuple[int, int] | None:
    """Return the first and the last position in an index; None if it is empty."""
    return (0, int(index.ntotal) - 1) if index.ntotal else None


def check_apart(
    info: str, names: Sequence[str], firsts: Sequence[int], spans: Sequence[tuple[int, int] | None]
) -> None:
    """Raise StorageError if files have rows in common, given the beginnings in a json file.

    `spans` are the smallest and the largest id of each file, None if it is empty.
    """
    rows = sorted(
        (first + span[0], first + span[1], name, first)
        for first, span, name in zip(firsts, spans, names, strict=True)
        if span is not None
    )
    for (_, last, one, at), (low, _, other, there) in pairwise(rows):
        if low <= last:
            raise StorageError(
                f"{info} says that the rows of {one} begin at {at:,} and those of {other} at {there:,}: then both "
                f"would have a row {low:,}; correct the parts there"
            )


def tell_order(path: str, names: Sequence[str], info: str | None) -> None:
    """Log a line if names have numbers and are not in their order; `info` may say where rows begin."""
    if sorted(names, key=split_numbers) == list(names):
        return
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    logger.warning(
        "%s: rows are counted over the files in the order of their names, %s; for the order of their numbers, write "
        "these with leading zeros%s",
        path, shown, f', or say in {info} where the rows of each file begin ("parts")' if info else "",
    )  # fmt: skip


def split_numbers(name: str) -> list[str | int]:
    """Return a name's text and numbers in turn, to sort 2.index before 10.index."""
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split("([0-9]+)", name))]


def read_place(named: Named, name: str, described: Mapping[str, int]) -> int:
    if name not in described:
        raise StorageError(
            f"{named.path}/{name} is not among the parts in the index's json file", advice="build the index again"
        )
    return described[name]


def fit_described(named: Named, indices: Sequence[Any], held: Sequence[Ids], starts: Sequence[int]) -> list[bool]:
    """Return for each file whether its ids are the rows in the json file; else they begin at 0."""
    found = [True] * len(held)
    for i, index in enumerate(indices):
        if not len(held[i]) or not has_ids(index):
            continue
        low, high, first = int(held[i].min()), int(held[i].max()), starts[i]
        if 0 < first <= low and high < int(index.ntotal):  # these ids fit both cases
            low = min(int(ids.min()) for ids in pieces_of(index))
        end = min((start for start in starts if start > first), default=ENDLESS)
        found[i] = first <= low and high < end
        if not found[i] and high >= end - first:
            raise StorageError(
                f"{named.path}/{named.names[i]} has ids from {low:,} to {high:,}, but its rows in {named.info} "
                f"are {first:,} to {end - 1:,}",
                advice="correct the parts there, or build the index again",
            )
    return found


def fit_each_other(named: Named, indices: Sequence[Any], held: Sequence[Ids]) -> list[bool]:
    """Return for each file whether its ids are those of the whole index; it is the same for all."""
    spans = sorted((int(ids.min()), int(ids.max())) for ids in held if len(ids))
    are_apart = all(before[1] < after[0] for before, after in pairwise(spans))
    with_ids = [(index, ids) for index, ids in zip(indices, held, strict=True) if len(ids) and has_ids(index)]
    if are_apart and any(ids.max() >= index.ntotal for index, ids in with_ids):
        return [True] * len(held)
    can_be_read = sum(int(index.ntotal) for index in indices) <= MOST_READ
    if (can_be_read or are_apart) and all(counts_from_zero(index) for index, _ in with_ids):
        return [False] * len(held)
    if can_be_read:
        held = [read_all(index) if has_ids(index) else ids for index, ids in zip(indices, held, strict=True)]
    shared = find_shared(held)
    if shared is not None:
        one, other, row = shared
        raise named.refuse(
            f"{named.names[one]} and {named.names[other]} in {named.path} both have a row {row:,}"
            + ("" if can_be_read else f", and there are more than {MOST_READ:,} rows")
        )
    return [True] * len(held)


def find_shared(held: Sequence[Ids]) -> tuple[int, int, int] | None:
    """Return two files and the first id that both have; None if there is none."""
    if find_repeated(held) is None:
        return None
    repeated = find_repeated([np.unique(ids) for ids in held])  # an id may have been in one file twice
    if repeated is None:
        return None
    one, other, *_ = (i for i, ids in enumerate(held) if (ids == repeated).any())
    return one, other, repeated


def find_repeated(held: Sequence[Ids]) -> int | None:
    """Return the first id that occurs twice. A sort that also tracked the files would take longer."""
    ids = np.concatenate(held)
    ids.sort()
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    return int(ids[twice[0]]) if len(twice) else None


def counts_from_zero(index: Any) -> bool:
    """Say whether the ids in an index are among 0 to n - 1, each once; faiss leaves rows of NaN out of lists."""
    seen, count = np.zeros(int(index.ntotal), np.bool_), 0
    for ids in pieces_of(index):
        if ids.min() < 0 or ids.max() >= len(seen):
            return False
        seen[ids] = True
        count += len(ids)
    return bool(np.count_nonzero(seen) == count)


def read_all(index: Any) -> Ids:
    return np.concatenate([np.empty(0, np.int64), *pieces_of(index)])


def read_some(index: Any) -> Ids:
    """Return some of the ids in an id map or in lists, including the first and the last; else all positions."""
    if not has_ids(index):
        return np.arange(int(index.ntotal))
    some = np.concatenate([np.empty(0, np.int64), *pieces_of(index, LISTS_READ)])
    return some if len(some) or not index.ntotal else read_all(index)  # lists that are mostly empty


def is_id_map(index: Any) -> bool:
    """Say whether the ids in an index are an array in memory."""
    return isinstance(below_transforms(index), faiss.IndexIDMap)


def below_transforms(index: Any) -> Any:
    node = faiss.downcast_index(index)
    while isinstance(node, faiss.IndexPreTransform):
        node = faiss.downcast_index(node.index)
    return node


def pieces_of(index: Any, most: int | None = None) -> Iterator[Ids]:
    """Yield views of the ids in an index, none empty; of at most `most` lists, and of long lists only the ends."""
    node = below_transforms(index)
    if not node.ntotal:
        return
    if isinstance(node, faiss.IndexIDMap):
        ids = faiss.rev_swig_ptr(node.id_map.data(), node.id_map.size())
        if most is not None and len(ids) > IDS_READ:
            ids = ids[np.linspace(0, len(ids) - 1, IDS_READ).astype(int)]
        yield ids
        return
    lists = node.invlists
    numbers = (
        range(node.nlist) if most is None else np.unique(np.linspace(0, node.nlist - 1, most).astype(int)).tolist()
    )
    for number in numbers:
        if not (size := lists.list_size(number)):
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
        if most is not None and size > 2 * ENDS_READ:
            yield ids[:ENDS_READ]
            yield ids[-ENDS_READ:]
        else:
            yield ids
