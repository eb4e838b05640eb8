"""A webdataset of only the hits: samples of tars unchanged, others made from picture, caption and metadata."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, count, islice
from typing import Any, NamedTuple

import msgspec

from clip_retrieval.blobs import read_blob
from clip_retrieval.errors import one_line
from clip_retrieval.filter.hits import Hits
from clip_retrieval.filter.output import TARS_FOLDER
from clip_retrieval.filter.pictures import picture_name
from clip_retrieval.layout import CAPTION, IMAGE_PATH, SHARD, SHARD_OFFSET
from clip_retrieval.paths import is_pipe
from clip_retrieval.query.hits import OWN_NAMES, plain, rows_of
from clip_retrieval.query.pictures import find_file, find_picture
from clip_retrieval.sources.tar import read_members
from clip_retrieval.sources.tar_members import Member
from clip_retrieval.sources.tar_pictures import names_of
from clip_retrieval.sources.types import Failure
from clip_retrieval.sources.webdataset import group_key, grouped
from clip_retrieval.sources.zips import is_zip
from clip_retrieval.storage import Folder
from clip_retrieval.words import is_hidden

SAMPLES_PER_TAR = 10_000

Sample = dict[str, Any]  # key and members by suffix, as in webdataset
Problems = dict[int, str]  # why a row has no sample, by its place


class Spot(NamedTuple):
    """The position of a hit's picture in its tar, and its name in the metadata."""

    offset: int
    image_path: str


def write_tars(folder: Folder, hits: Hits) -> int:
    """Write webdataset/00000.tar and so on; return the number of samples. Hits without one get a problem."""
    rows = enumerate(row for block in hits.blocks() for row in rows_of(block))
    samples, written = unique_keys(make_samples(rows, hits.problems)), 0
    for number in count():
        first = next(samples, None)
        if first is None:
            break
        written += write_tar(folder, number, chain([first], islice(samples, SAMPLES_PER_TAR - 1)))
    return written


def write_tar(folder: Folder, number: int, samples: Iterable[Sample]) -> int:
    """Write one tar, whole or not at all; return the number of its samples."""
    written = 0
    with (
        folder.staged(f"{TARS_FOLDER}/{number:05d}.tar") as staged,
        staged.open("wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for sample in samples:
            add_sample(tar, sample)
            written += 1
    return written


def add_sample(tar: tarfile.TarFile, sample: Sample) -> None:
    """Write the members of a sample, by suffix and without a time, so the same hits give the same bytes."""
    for suffix in sorted(sample.keys() - {"__key__"}):
        member = tarfile.TarInfo(f"{sample['__key__']}.{suffix}")
        member.size, member.mode = len(sample[suffix]), 0o444
        tar.addfile(member, io.BytesIO(sample[suffix]))


def unique_keys(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Yield the samples under keys that stay inside a folder; a number is added to a key that is taken."""
    used: set[str] = set()
    for sample in samples:
        key, number = inside(sample["__key__"]), 1
        sample["__key__"] = key
        while sample["__key__"] in used:
            sample["__key__"], number = f"{key}-{number}", number + 1
        used.add(sample["__key__"])
        yield sample


def inside(key: str) -> str:
    """Return a key without a leading slash and without `..`, so the tar unpacks into one folder."""
    return posixpath.normpath(f"/{key}").lstrip("/") or "_"


def make_samples(rows: Iterable[tuple[int, dict[str, Any]]], problems: Problems) -> Iterator[Sample]:
    """Yield a sample for each row: first the rows that are not in tars, then tar by tar, each read once.

    Rows come with their places; `problems` gets the places of rows without a sample.
    """
    in_tars: dict[str, dict[Spot, int]] = defaultdict(dict)
    done: set[int] = set()
    for place, hit in rows:
        if hit["id"] in done:  # a row may be a hit of several queries
            continue
        done.add(hit["id"])
        try:
            if hit.get(SHARD_OFFSET) is not None and is_tar(str(hit[SHARD])):
                in_tars[str(hit[SHARD])][Spot(int(hit[SHARD_OFFSET]), str(hit[IMAGE_PATH]))] = place
                continue
        except OSError as error:
            problems[place] = one_line(error)
            continue
        sample = sample_of_row(place, hit, problems)
        if sample is not None:
            yield sample
    for shard, wanted in in_tars.items():
        yield from samples_of_tar(find_file(shard), wanted, problems)


@lru_cache(maxsize=4096)
def is_tar(shard: str) -> bool:
    return not is_pipe(shard) and not is_zip(find_file(shard))


def sample_of_row(place: int, hit: dict[str, Any], problems: Problems) -> Sample | None:
    """Return a sample of a hit's picture, caption and metadata; without a picture, note a problem and return None."""
    picture = find_picture(hit)
    if picture.problem is not None:
        problems[place] = picture.problem
        return None
    sample: Sample = {"__key__": f"{hit['id']:09d}"}
    if picture.data is not None:
        name = picture_name(sample["__key__"], hit, picture.data)
        stem, _, suffix = name.rpartition(".")
        sample = {"__key__": stem.replace(".", "_"), suffix.lower(): picture.data}
    if hit.get(CAPTION) is not None:
        sample["txt"] = str(hit[CAPTION]).encode()
    about = {name: plain(value) for name, value in hit.items() if name not in OWN_NAMES}
    return {**sample, "json": msgspec.json.encode(about)}


def samples_of_tar(url: str, wanted: Mapping[Spot, int], problems: Problems) -> Iterator[Sample]:
    """Yield the samples of a tar that hold these pictures, in its order; of the others only headers are read."""
    left, why = dict(wanted), "it has changed since it was embedded"
    for group in grouped(read_members(url, lambda name: not is_hidden(name)), url):
        if isinstance(group, Failure):
            why = group.detail if group.part == "shard" else why
            continue
        places = [left.pop(spot) for member in group.members for spot in spots_of(member) if spot in left]
        if places:
            try:
                yield sample_of_members(group.members)
            except OSError as error:
                problems.update(dict.fromkeys(places, one_line(error)))
        if not left:
            return
    problems.update(dict.fromkeys(left.values(), f"it is not found in {url}: {why}"))


def spots_of(member: Member) -> set[Spot]:
    """Return the spots by which metadata may name a member."""
    return set() if member.offset is None else {Spot(member.offset, name) for name in names_of(member.name)}


def sample_of_members(group: list[Member]) -> Sample:
    """Return the members of a sample with their unchanged bytes; raises OSError if one cannot be read."""
    key = group_key(group[0].name)
    members = {member.name[len(key) + 1 :]: member.blob for member in group if member.name.startswith(f"{key}.")}
    return {"__key__": key} | {name: read_blob(blob) for name, blob in members.items() if blob is not None}
