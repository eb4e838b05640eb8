"""manifest.json of an embeddings folder: what a run is, so that a later one goes on with it or refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from clip_retrieval.blobs import local_path
from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.encoder.config import AS_BEFORE
from clip_retrieval.encoder.uri import absolute_uri
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.worker.number_format import Check
from clip_retrieval.layout import FORMAT_VERSION, MANIFEST, EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.options import to_json
from clip_retrieval.sources import Source
from clip_retrieval.version import __version__

REVISED = "revised"  # in the manifest of a folder whose partitions are no longer those of a plan

# Values of options that the manifests of older folders do not mention.
PRESUMED = {"pictures": to_json(AS_BEFORE), "transparency": AS_BEFORE.transparency}

# Options that change how a run goes, but not what it writes.
FREE_OPTIONS = {
    "output_folder", "num_prepro_workers", "reader_timeout", "device", "clip_cache_path", "cache_path", "max_skipped",
    "write_batch_size", "wds_number_file_per_input_file", "output_partition_count", "dry_run", "telemetry",
    "batch_size", "precision_check", "update", "retry_failed",
    "fetch_concurrency", "fetch_per_host", "fetch_timeout", "fetch_retries",
}  # fmt: skip


def describe_options(config: InferenceConfig, source: Source, plan: Sequence[Partition]) -> dict[str, Any]:
    """Return the part of the manifest that needs no model. Nothing in it depends on time or machine."""
    return {
        "format_version": FORMAT_VERSION,
        "made_by": f"clip-retrieval {__version__}",
        "options": to_json(config) | {"source": to_json(source.config)},
        "input": describe_input(source),
        "partition_count": len(plan),
    }


def describe_run(
    config: InferenceConfig, source: Source, encoder: EncoderInfo, plan: Sequence[Partition], check: Check | None = None
) -> dict[str, Any]:
    """Return the manifest: options, input, plan and encoder, with what became of trying its number format."""
    described = describe_encoder(encoder) | {"pictures": to_json(source.config.pictures)}
    if check is not None:
        described["precision_check"] = asdict(check)
    return describe_options(config, source, plan) | {"encoder": described}


def settled_precision(folder: EmbeddingsFolder) -> str | None:
    """Return the number format that a run was begun in; None where nothing is done yet."""
    manifest = read_manifest(folder) if folder.names("metadata", ".parquet") else None
    return None if manifest is None else manifest.get("encoder", {}).get("precision")


def describe_input(source: Source) -> dict[str, Any]:
    return {"units": len(source.units), "digest": digest_units(source)}


def describe_encoder(info: EncoderInfo) -> dict[str, Any]:
    return {
        "clip_model": absolute_uri(info.uri),  # the index may be asked from another folder
        "fingerprint": info.fingerprint,
        "dimension": info.dimension,
        "precision": info.precision,
        "preprocess": to_json(info.preprocess),
    }


def digest_units(source: Source) -> str:
    """Return a digest of the units' names; of tars the base names, since their folder may be spelled in many ways."""
    is_tars = source.config.input_format == "webdataset"
    digest = hashlib.sha256()
    for unit in (unit.rpartition("/")[2] if is_tars else unit for unit in source.units):
        digest.update(unit.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def check_folder(folder: EmbeddingsFolder, described: dict[str, Any]) -> bool:
    """Say whether the folder holds this run already; raises ConfigError where it holds another one."""
    existing = read_manifest(folder)
    if existing is None:
        if folder.names("metadata", ".parquet"):
            raise ConfigError(
                f"{folder.url} holds embeddings without a {MANIFEST} (made by clip-retrieval 2?); use a new folder"
            )
        return False
    if not folder.names("metadata", ".parquet"):
        return False  # nothing is done yet: the options may still change
    then, now = existing.get("input"), described["input"]
    if isinstance(then, dict) and then != now:
        is_folder = described["options"]["source"]["input_format"] == "files"
        raise ConfigError(
            f"the input has changed since {folder.url} was begun: {then.get('units')} samples or tars then, "
            f"{now['units']} now, with these names; {'run with --update, or ' if is_folder else ''}use a new folder"
        )
    check_same_run(folder, existing, described)
    return True


def is_revised(folder: EmbeddingsFolder) -> bool:
    """Say whether update or retry_failed changed the folder: what its rows are is then in its ledger, not in a plan."""
    return bool((read_manifest(folder) or {}).get(REVISED))


def check_same_run(folder: EmbeddingsFolder, existing: dict[str, Any], described: dict[str, Any]) -> None:
    """Raise ConfigError where the folder's options or encoder are others; a revised folder's plan is its own."""
    if existing.get(REVISED):
        described = {name: value for name, value in described.items() if name != "partition_count"}
    differences = dict.fromkeys(compare({name: existing.get(name) for name in described}, described))
    if differences:
        raise ConfigError(
            f"{folder.url} holds a run with other options ({'; '.join(differences)}); "
            "use a new folder, or the old options"
        )


def claim_folder(folder: EmbeddingsFolder, manifest: dict[str, Any]) -> None:
    """Write the manifest, or compare it with the one that is there."""
    if not check_folder(folder, manifest):
        folder.write_json(MANIFEST, manifest)


def compare(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yield `name: old -> new` for what differs and counts."""
    if name in FREE_OPTIONS or name == "made_by":
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
