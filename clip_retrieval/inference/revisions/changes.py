"""What changed in a folder since its ledger was written: by size and time first, by content if these differ.

A file with the size and time in the ledger is not read. A row whose files are gone, and whose content is now at
another path, was renamed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from clip_retrieval.inference.output.ledger import Record, as_bytes, as_name, describe_files
from clip_retrieval.inference.readers.media import digest_holder, digest_place
from clip_retrieval.layout import Partition
from clip_retrieval.media.places import in_place_order, split_place
from clip_retrieval.process.resources import count_cores
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.types import SAMPLE_PARTS, FileState, Part

logger = logging.getLogger(__name__)

KEYS_AT_ONCE = 1024
Digests = tuple[bytes | None, ...]  # digests of picture, caption and json; None if the sample has no such file
Sizes = tuple[int | None, ...]


@dataclass(kw_only=True)
class Change:
    """What becomes of one record: `key` and `files` are its present ones; without a key it is deleted."""

    partition: Partition
    place: int  # number of the record in the partition's ledger
    record: Record
    key: str | None = None
    files: Mapping[Part, FileState] = field(default_factory=dict)

    @property
    def is_renamed(self) -> bool:
        return self.key is not None and self.key != as_name(self.record["key"])

    @property
    def is_left_out(self) -> bool:
        return self.record["row"] is None

    def new_record(self) -> Record | None:
        """Return the record to write; None if a sample without a row is forgotten."""
        record = self.record
        if self.key is None:
            kept = {name: record[name] for name in ("row", "key")}
            return None if self.is_left_out else kept | {"deleted": True}
        digests = {f"{part}_digest": digest_of(record, part) for part in self.files}
        return (
            {"row": record["row"], "deleted": False, "key": as_bytes(self.key)} | describe_files(self.files) | digests
        )


@dataclass
class Changes:
    """The work of an update: changes of records, and keys of samples to embed, sorted."""

    changes: list[Change] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    row_count: int = 0  # rows before it, without those that were deleted earlier

    def count_kept(self) -> int:
        return self.row_count - self.count_renamed() - self.count_removed()

    def count_renamed(self) -> int:
        return sum(change.is_renamed for change in self.changes)

    def count_removed(self) -> int:
        return sum(change.key is None and not change.is_left_out for change in self.changes)


def find_changes(
    records: Iterable[tuple[Partition, int, Record]], source: FilesSource, lost: Collection[Partition] = ()
) -> Changes:
    """Compare a ledger with the folder as it is now; rows of `lost` partitions are gone, and their samples new."""
    found, touched, lost_rows = Changes(), list[Change](), list[Change]()
    is_known, last = bytearray(len(source.units)), -1
    for partition, place, record in records:
        if record["deleted"]:
            continue
        key = as_name(record["key"])
        found.row_count += record["row"] is not None
        if record["row"] is not None and partition in lost:
            lost_rows.append(Change(partition=partition, place=place, record=record))
            continue
        number = source.place_of(key, last)  # a ledger is in the order of the listing
        if number is None:
            found.changes.append(Change(partition=partition, place=place, record=record))
            continue
        is_known[number], last = True, number
        if not is_same_state(record, source.files_in(source.rows[number])):
            touched.append(Change(partition=partition, place=place, record=record))
    changed = look_into(touched, source, found)
    new = sorted({*(source.units[place] for place in places_of(0, is_known)), *changed}, key=in_place_order)
    renamed = match_renamed([change for change in found.changes if change.key is None], new, source)
    found.new = [key for key in new if key not in renamed]
    found.changes += lost_rows
    return found


def places_of(value: int, found: bytearray) -> Iterator[int]:
    place = found.find(value)
    while place >= 0:
        yield place
        place = found.find(value, place + 1)


def is_same_state(record: Record, files: Mapping[Part, FileState]) -> bool:
    """Say whether the files have the paths, sizes and times of the record."""
    for part in SAMPLE_PARTS:
        state = files.get(part)
        then = record[f"{part}_file"], record[f"{part}_size"], record[f"{part}_stamp"]
        if then != ((None, None, None) if state is None else (as_bytes(state.path), state.size, state.stamp)):
            return False
    return True


def look_into(touched: Sequence[Change], source: FilesSource, found: Changes) -> list[str]:
    """Sort out what only looks changed; return the keys of samples with other content than their record."""
    rows = [change for change in touched if not change.is_left_out]
    left_out = [change for change in touched if change.is_left_out]
    changed = [as_name(change.record["key"]) for change in left_out]
    found.changes += left_out
    keys = [as_name(change.record["key"]) for change in rows]
    for change, (key, digests) in zip(rows, digest_samples(keys, source), strict=True):
        if digests is None:
            continue  # it cannot be read now: its row stays unchanged
        if digests == digests_in(change.record):
            change.key, change.files = key, source.files_of(key)
        else:
            changed.append(key)
        found.changes.append(change)
    return changed


def match_renamed(gone: Sequence[Change], new: Sequence[str], source: FilesSource) -> set[str]:
    """Give rows whose files are gone the new key with the same content; return the keys that found a row."""
    rows = [change for change in gone if not change.is_left_out and has_digests(change.record)]
    sizes = {sizes_in(change.record) for change in rows}
    by_content: dict[Digests, list[Change]] = {}
    for change in reversed(rows):
        by_content.setdefault(digests_in(change.record), []).append(change)
    found = set()
    candidates = [key for key in new if sizes_of(source.files_of(key)) in sizes]
    for key, digests in digest_samples(candidates, source):
        waiting = by_content.get(digests) if digests is not None else None
        if waiting:
            change = waiting.pop()
            change.key, change.files = key, source.files_of(key)
            found.add(key)
    return found


def digest_samples(keys: Sequence[str], source: FilesSource) -> Iterator[tuple[str, Digests | None]]:
    """Yield each key and its files' digests, None if one cannot be read; reads in parallel, in bounded memory."""
    remaining = iter(keys)
    with ThreadPoolExecutor(count_cores()) as threads:
        while some := list(islice(remaining, KEYS_AT_ONCE)):
            yield from zip(some, threads.map(lambda key: digest_files(source.files_of(key), source), some), strict=True)


def digest_files(files: Mapping[Part, FileState], source: FilesSource) -> Digests | None:
    try:
        return tuple(digest_file(files[part], source) if part in files else None for part in SAMPLE_PARTS)
    except (OSError, EOFError, ValueError) as error:
        logger.warning("a file cannot be read, so its row stays unchanged: %s", error)
        return None


def digest_file(state: FileState, source: FilesSource) -> bytes:
    found = split_place(state.path)
    if found is None:
        return digest_whole(source.url(state.path), state.size, state.stamp)
    return digest_place(digest_whole(source.url(found[0]), state.size, state.stamp), found[1])


@lru_cache(maxsize=64)
def digest_whole(url: str, size: int | None, _stamp: str) -> bytes:
    """Return the digest of a file in the state of its listing: its pictures follow each other, so it is read once."""
    return digest_holder(url, size)


def digest_of(record: Record, part: Part) -> bytes | None:
    return record[f"{part}_digest"]  # type: ignore[no-any-return]


def digests_in(record: Record) -> Digests:
    return tuple(digest_of(record, part) for part in SAMPLE_PARTS)


def has_digests(record: Record) -> bool:
    """Say whether every file of the record could be read then."""
    return all((record[f"{part}_file"] is None) == (digest_of(record, part) is None) for part in SAMPLE_PARTS)


def sizes_in(record: Record) -> Sizes:
    return tuple(record[f"{part}_size"] for part in SAMPLE_PARTS)


def sizes_of(files: Mapping[Part, FileState]) -> Sizes:
    return tuple(files[part].size if part in files else None for part in SAMPLE_PARTS)
