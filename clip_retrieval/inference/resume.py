"""Decides whether a run may resume in a folder with embeddings: only with the same options, input and model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.config import AS_BEFORE
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import describe_encoder
from clip_retrieval.inference.output.ledger import Record, as_name, read_ledger
from clip_retrieval.layout import (
    FOLDER_FORMATS,
    LEDGER_FOLDER,
    MANIFEST,
    REVISED,
    EmbeddingsFolder,
    Partition,
    read_manifest,
)
from clip_retrieval.media.config import VideoConfig
from clip_retrieval.options import flags_of, to_json
from clip_retrieval.paths import local_path
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.protocol import Source

# Values of options that the manifests of older folders do not mention.
PRESUMED = {
    "pictures": to_json(AS_BEFORE),
    "transparency": AS_BEFORE.transparency,
    "videos": to_json(VideoConfig()),
}

PARTS = {"enable_image": "pictures", "enable_text": "captions"}  # switched off if the input has none

# Keys of the manifest that may differ: options that do not change what is written, and records of how a run went.
MAY_DIFFER = {flag.name for flag in flags_of(InferenceConfig) if flag.facts.get("may_change")} | {
    "made_by", "precision_check",
}  # fmt: skip


def settled_precision(folder: EmbeddingsFolder, described: dict[str, Any] | None = None) -> str | None:
    """Return the number format of a started run; None if it is not that of `described`, and no partition is done."""
    manifest = read_manifest(folder)
    if manifest is None or not (holds(manifest, described or {}) or folder.has_partitions()):
        return None
    found: str | None = manifest.get("encoder", {}).get("precision")
    return found


def holds(manifest: dict[str, Any], described: dict[str, Any]) -> bool:
    """Say whether a manifest says just what `described` does; its partitions need not be listed then."""
    said = json.loads(json.dumps(described))
    return bool(said) and all(as_claimed(name, manifest.get(name)) == as_claimed(name, said[name]) for name in said)


def as_claimed(name: str, value: Any) -> Any:
    """Return an entry of a manifest without what differs between workers of one run."""
    if name == "encoder" and isinstance(value, dict):
        return {key: value[key] for key in value if key != "precision_check"}
    return value


def check_folder(folder: EmbeddingsFolder, described: dict[str, Any]) -> bool:
    """Say whether the folder holds this run already; raises ConfigError if it holds another one.

    Finished partitions are listed only if the folder's manifest differs: workers of one run list nothing.
    """
    existing = read_manifest(folder)
    if existing is None:
        if folder.has_partitions():
            raise ConfigError(
                f"{folder.url} holds embeddings without a {MANIFEST} (made by clip-retrieval 2?); use a new folder"
            )
        return False
    if holds(existing, described):
        return True
    if not folder.has_partitions():
        return False  # no partition is done yet: options may still change
    then, now = existing.get("input"), described["input"]
    if isinstance(then, dict) and then != now:
        is_folder = described["options"]["source"]["input_format"] in FOLDER_FORMATS
        raise ConfigError(
            f"the input has changed since {folder.url} was begun: {describe_change(existing, described)}; "
            f"{'run with --update, or ' if is_folder else ''}use a new folder"
        )
    check_same_run(folder, existing, described)
    return True


def describe_change(existing: dict[str, Any], described: dict[str, Any]) -> str:
    """Return in words how the inputs of two manifests differ: by place, else by the number of names, else by names."""
    then, now = (manifest["options"]["source"]["input_dataset"] for manifest in (existing, described))
    if then != now and not is_same_place(then, now):
        return f"it was {then}, and is {now} now"
    counts = [manifest["input"]["units"] for manifest in (existing, described)]
    if counts[0] != counts[1]:
        return f"its list of samples or tars had {counts[0]:,} names, and has {counts[1]:,} now"
    return f"its list of samples or tars has {counts[0]:,} {'name' if counts[0] == 1 else 'names'}, but not the same"


def is_revised(folder: EmbeddingsFolder) -> bool:
    """Say whether update or retry_failed changed the folder: then its ledger, not a plan, says what its rows are."""
    return bool((read_manifest(folder) or {}).get(REVISED))


def check_same_run(folder: EmbeddingsFolder, existing: dict[str, Any], described: dict[str, Any]) -> None:
    """Raise ConfigError if the folder has other options or another encoder; a revised folder follows no plan."""
    if "options" not in existing:
        raise ConfigError(
            f"{folder.url} was not written by `inference` but, it seems, by `dedup` or `select`; name a new folder"
        )
    then, now = (manifest.get("options", {}).get("source", {}) for manifest in (existing, described))
    check_new_parts(folder, then, now)
    check_lost_parts(folder, then, now)
    if existing.get(REVISED):
        described = {name: value for name, value in described.items() if name != "partition_count"}
    differences = dict.fromkeys(compare({name: existing.get(name) for name in described}, described))
    if differences:
        raise ConfigError(
            f"{folder.url} holds a run with other options ({'; '.join(differences)})",
            advice="use a new folder, or the old options",
        )


def check_new_parts(folder: EmbeddingsFolder, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError if captions or pictures exist and are wanted, and the folder was made without them."""
    for name, word in PARTS.items():
        if now.get(name) and then.get(name) is False:
            raise ConfigError(
                f"{now['input_dataset']} holds {word} now, and {folder.url} was made without them; add --{name} False "
                "to go on without them, or use a new folder"
            )


def check_lost_parts(folder: EmbeddingsFolder, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError if the folder was made with captions or pictures, and now none exist or are wanted."""
    for name, word in PARTS.items():
        if then.get(name) and now.get(name) is False:
            raise ConfigError(
                f"{folder.url} was made with {word}, and {now['input_dataset']} holds none now, or they are not "
                f"wanted; put them back, leave out --{name} False, or use a new folder"
            )


def claim_folder(folder: EmbeddingsFolder, manifest: dict[str, Any]) -> None:
    """Write the manifest, or compare it with the one that is there."""
    if not check_folder(folder, manifest):
        folder.write_json(MANIFEST, manifest)


def compare(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yield `name: old -> new` for each relevant difference."""
    if name in MAY_DIFFER:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from compare(old.get(key, PRESUMED.get(key)), new.get(key), key)
    elif as_plain(old) != as_plain(new) and not (name == "input_dataset" and is_same_place(old, new)):
        yield f"{name} {old} -> {new}"


def is_same_place(old: str, new: str) -> bool:
    """Say whether two spellings, such as photos and ./photos/, are one local path."""
    first, second = local_path(old), local_path(new)
    return first is not None and second is not None and first.resolve() == second.resolve()


def as_plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def as_it_was(source: FilesSource, config: InferenceConfig, folder: EmbeddingsFolder) -> FilesSource:
    """Return the source with the parts that the folder was made with, even if the input has lost them all.

    Raises ConfigError if the input now has a part that it did not have.
    """
    then = (read_manifest(folder) or {}).get("options", {}).get("source", {})
    check_new_parts(folder, then, to_json(source.config))
    parts = dataclasses.replace(
        source.config,
        enable_image=config.source.enable_image and then.get("enable_image", True),
        enable_text=config.source.enable_text and then.get("enable_text", True),
    )
    return dataclasses.replace(source, config=parts)


def check_input(folder: EmbeddingsFolder, source: Source, described: dict[str, Any]) -> None:
    """Raise ConfigError, with numbers, if a folder of files is no longer the one that was embedded."""
    manifest = read_manifest(folder) or {}
    is_same = manifest.get("input") == described["input"]
    if not manifest or (is_same and not manifest.get(REVISED)):
        return
    partitions = folder.partitions()
    if len(partitions) < manifest.get("partition_count", 0) and manifest.get(REVISED):
        raise ConfigError(f"an update of {folder.url} was stopped; run the same command with --update to finish it")
    if not partitions or is_same or not isinstance(source, FilesSource):
        return
    if len(partitions) < manifest["partition_count"] or not folder.names(LEDGER_FOLDER, ".parquet"):
        return
    check_new_parts(folder, manifest["options"].get("source") or {}, to_json(source.config))
    others = dict.fromkeys(compare(manifest["options"].get("source"), to_json(source.config)))
    if others:  # another input is not a change of this one
        raise ConfigError(
            f"{folder.url} holds a run with other options ({'; '.join(others)}); use a new folder, or the old options"
        )
    changes = count_changes(records_of(folder, partitions), source)
    places = compare_places(manifest, source)
    cause = (
        f"{folder.url} holds other frames or pages ({'; '.join(places)})"
        if places
        else f"the input has changed since {folder.url} was made"
    )
    raise ConfigError(
        f"{cause}: {changes}; run the same command with --update to embed the difference"
        f"{', use the old options,' if places else ','} or use a new folder"
    )


def compare_places(manifest: dict[str, Any], source: FilesSource) -> list[str]:
    """Return in words how options differ that choose frames and pages, which an update may change."""
    then, now = (describe_places(options) for options in (manifest["options"]["source"], to_json(source.config)))
    return [f"{name} {then[name]} -> {now[name]}" for name in now if then.get(name, now[name]) != now[name]]


def describe_places(options: dict[str, Any]) -> dict[str, Any]:
    return {**options.get("videos", PRESUMED["videos"]), "enable_pages": options.get("enable_pages", True)}


def count_changes(records: Iterable[tuple[Partition, int, Record]], source: FilesSource) -> str:
    is_known, gone, last = bytearray(len(source.units)), 0, -1
    for *_, record in records:
        place = None if record["deleted"] else source.place_of(as_name(record["key"]), last)
        if place is not None:
            is_known[place], last = True, place
        gone += place is None and not record["deleted"]
    return f"{is_known.count(0)} new, {gone} gone"


def check_ledgers(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> None:
    there = set(folder.names(LEDGER_FOLDER, ".parquet"))
    for name in map(folder.ledger_name, partitions):
        if name.rpartition("/")[2] not in there:
            raise ConfigError(
                f"{folder.path(name)} is missing: what the rows were made of is not known",
                advice="use a new folder",
            )


def records_of(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> Iterator[tuple[Partition, int, Record]]:
    for partition in partitions:
        for place, record in enumerate(read_ledger(folder, folder.ledger_name(partition))):
            yield partition, place, record


def check_encoder(folder: EmbeddingsFolder, encoder: Encoder) -> None:
    """Raise ConfigError if the folder's embeddings are from another model."""
    then, now = (read_manifest(folder) or {}).get("encoder", {}), describe_encoder(encoder.info)
    differences = list(compare({name: then.get(name) for name in now}, now))
    if differences:
        raise ConfigError(
            f"{folder.url} holds the embeddings of another model ({'; '.join(differences)})",
            advice="use a new folder",
        )
