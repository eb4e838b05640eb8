"""The plan of a run that goes to other machines, in the output folder: made once, read by every worker.

_plan/plan.json has the options and the cut. The units are next to it in blocks; a worker reads those of its own
partitions: no worker lists the input again, and its memory does not grow with the input.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from clip_retrieval.errors import ConfigError, StorageError, first_line
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import describe_options
from clip_retrieval.inference.resume import compare
from clip_retrieval.json_files import parse_json
from clip_retrieval.layout import FORMAT_VERSION, PLAN, PLAN_FOLDER, EmbeddingsFolder, Partition
from clip_retrieval.options import from_json, to_json
from clip_retrieval.sources import codec_of
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.saving import (
    UNITS_PER_BLOCK,
    Restored,
    StoredBlocks,
    blocks_of,
    pack_failures,
    unpack_failures,
)
from clip_retrieval.sources.subset import Subset

T = TypeVar("T")

UNITS, IGNORED = "units", "ignored"  # kinds of blocks
PLAN_ADVICE = "plan again with `clip-retrieval inference ... --plan_only`"


@dataclass(frozen=True, kw_only=True)
class SavedPlan:
    """plan.json."""

    format_version: int
    run: str  # id of the run that it was made for
    given: dict[str, Any]  # options as they were given
    described: dict[str, Any]  # what the manifest says: options, with the parts that the input has; input; cut
    partition_count: int
    unit_count: int
    ignored_count: int  # files that belong to no unit
    units_per_block: int
    sample_count: int | None
    blocks: str  # folder of the blocks
    heads: list[Any]  # the first item of each block, if workers search for items by name


def save_plan(config: InferenceConfig, source: Source, partitions: Sequence[Partition], run: str) -> None:
    """Write the plan, its blocks first; an earlier one is replaced."""
    folder = EmbeddingsFolder(config.output_folder)
    described = describe_options(config, source, partitions)
    whole = source.whole if isinstance(source, Subset) else source
    codec = codec_of(whole.config.input_format)
    items, ignored = codec.items_of(whole), getattr(whole, "ignored", ())
    place, heads = f"{PLAN_FOLDER}/{described['input']['digest']}", []
    for number, block in enumerate(blocks_of(items)):
        packed = codec.pack(block)
        heads += [packed[0]] if codec.is_sorted else []
        write_block(folder, f"{place}/{UNITS}_{number}.json.gz", packed)
    for number, block in enumerate(blocks_of(ignored)):
        write_block(folder, f"{place}/{IGNORED}_{number}.json.gz", pack_failures(block))
    saved = SavedPlan(
        format_version=FORMAT_VERSION,
        run=run,
        given=to_json(config),
        described=described,
        partition_count=len(partitions),
        unit_count=len(items),
        ignored_count=len(ignored),
        units_per_block=UNITS_PER_BLOCK,
        sample_count=whole.estimate_total(),
        blocks=place,
        heads=heads,
    )
    folder.write_json(PLAN, to_json(saved))
    for other in folder.subfolders(PLAN_FOLDER):
        if f"{PLAN_FOLDER}/{other}" != place:
            folder.remove(f"{PLAN_FOLDER}/{other}")


def write_block(folder: EmbeddingsFolder, name: str, value: object) -> None:
    with folder.staged(name) as staged:
        staged.write_bytes(gzip.compress(json.dumps(value).encode(), 1, mtime=0))


def remove_plan(folder: EmbeddingsFolder) -> None:
    """Remove the plan of a run that is complete."""
    folder.remove(PLAN_FOLDER)


def read_plan(folder: EmbeddingsFolder) -> SavedPlan | None:
    """Return the plan in a folder; None if there is none. Raises StorageError if it cannot be used."""
    try:
        data = folder.read_bytes(PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    version = parse_json(data, dict[str, Any], folder.path(PLAN)).get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StorageError(f"{folder.path(PLAN)} was written by a newer clip-retrieval; update clip-retrieval")
    try:
        return parse_json(data, SavedPlan, folder.path(PLAN))
    except StorageError as error:
        raise StorageError(f"{error}; {PLAN_ADVICE}") from error


def check_plan(saved: SavedPlan, config: InferenceConfig, folder: EmbeddingsFolder) -> None:
    """Raise ConfigError if the plan was made for other options."""
    differences = dict.fromkeys(compare(saved.given, to_json(config)))
    count = config.output_partition_count
    if count not in (None, saved.partition_count):
        differences[f"output_partition_count {saved.partition_count} -> {count}"] = None
    if differences:
        raise ConfigError(
            f"{folder.path(PLAN)} was made with other options ({'; '.join(differences)}); give the same ones, or "
            f"{PLAN_ADVICE}"
        )


def restore_source(saved: SavedPlan, config: SourceConfig, folder: EmbeddingsFolder) -> Source:
    """Return the input as it was planned; its units are read block by block."""
    planned = from_json(SourceConfig, saved.described["options"]["source"])
    config = replace(
        config,
        input_dataset=planned.input_dataset,  # it may be spelled differently here, and is part of the output
        enable_image=planned.enable_image,  # off if the input has no such part
        enable_text=planned.enable_text,
        enable_pages=planned.enable_pages,
        videos=planned.videos,
    )
    codec = codec_of(config.input_format)

    def load(kind: str, unpack: Callable[[Any], list[T]], number: int) -> list[T]:
        return unpack(read_block(folder, f"{saved.blocks}/{kind}_{number}.json.gz"))

    size, heads = saved.units_per_block, codec.unpack(saved.heads) if codec.is_sorted else []
    restored = codec.restore(
        Restored(
            config=config,
            items=StoredBlocks(saved.unit_count, size, partial(load, UNITS, codec.unpack), heads),
            ignored=StoredBlocks(saved.ignored_count, size, partial(load, IGNORED, unpack_failures)),
            sample_count=saved.sample_count,
        )
    )
    if config.subset_size is None or codec.is_sorted:  # a subset of files is only fewer of them
        return restored
    return Subset(restored, config.subset_size)


def read_block(folder: EmbeddingsFolder, name: str) -> Any:
    """Return a block; raises StorageError if it is missing or damaged."""
    try:
        return json.loads(gzip.decompress(folder.read_bytes(name)))
    except FileNotFoundError as error:
        raise StorageError(f"{folder.path(name)} is missing; {PLAN_ADVICE}") from error
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise StorageError(f"{folder.path(name)} is damaged ({first_line(error)}); {PLAN_ADVICE}") from error
