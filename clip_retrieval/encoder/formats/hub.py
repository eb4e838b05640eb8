"""Models by their names on a hub, of transformers or in GGUF: fetched into its cache, then read like a path."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.huggingface import check_model_type, read_huggingface
from clip_retrieval.encoder.formats.recognize import WEIGHT_FILES, read_checkpoint
from clip_retrieval.encoder.hub_connection import hub_or_cache, why_not_fetched
from clip_retrieval.encoder.uri import GGUF_HUB_PREFIX, HUB_PREFIX
from clip_retrieval.errors import EncoderError, first_line

logger = logging.getLogger(__name__)

DESCRIPTIONS = (
    "config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
# Fetched in this order, and only until one exists: many repositories hold the same weights in both forms.
WEIGHTS = (
    ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
)


def read_named(place: str, cache: str | None) -> Checkpoint:
    """Read what a checkpoint's name says: hf-hub:ORG/NAME[@REVISION], or a path."""
    if place.startswith(GGUF_HUB_PREFIX):
        with hub_or_cache():
            return read_checkpoint(fetch_gguf(place.removeprefix(GGUF_HUB_PREFIX), cache))
    if place.startswith(HUB_PREFIX):
        with hub_or_cache():
            return read_huggingface(fetch_model(place.removeprefix(HUB_PREFIX), cache))
    return read_checkpoint(Path(place))


def fetch_model(name: str, cache: str | None) -> Path:
    """Return the folder of ORG/NAME[@REVISION] in the hub's cache; only weights in a readable form are fetched."""
    repository, _, revision = name.partition("@")
    folder = fetch(repository, revision or None, cache, DESCRIPTIONS)
    if not (folder / "config.json").exists():
        raise EncoderError(f"{name} holds no model of transformers: it has no config.json")
    check_model_type(folder)
    for patterns in WEIGHTS:
        folder = fetch(repository, folder.name, cache, patterns)  # a snapshot's name is its commit
        if any((folder / file).exists() for file in WEIGHT_FILES):
            return folder
    raise EncoderError(
        f"the weights of {name} (model.safetensors or pytorch_model.bin) are neither in {folder} nor on the hub"
    )


def fetch_gguf(name: str, cache: str | None) -> Path:
    """Return the file of ORG/NAME[/FILE][@REVISION] in the hub's cache; the smallest GGUF file if none is named."""
    place, _, revision = name.partition("@")
    repository, file = "/".join(place.split("/")[:2]), "/".join(place.split("/")[2:])
    folder = fetch(repository, revision or None, cache, [file or smallest_gguf(repository, revision or None)])
    found = [folder / file] if file else sorted(folder.rglob("*.gguf"), key=lambda path: path.stat().st_size)
    if not found or not found[0].exists():
        raise EncoderError(f"{repository} holds no {file or 'GGUF file'}, neither here nor on the hub")
    return found[0]


def smallest_gguf(repository: str, revision: str | None) -> str:
    """Return the name of the smallest GGUF file on the hub; if the hub cannot be asked, a pattern for local ones."""
    from huggingface_hub import HfApi  # noqa: PLC0415 -- as below

    try:
        files = HfApi().model_info(repository, revision=revision, files_metadata=True).siblings or []
    except Exception as error:  # noqa: BLE001 -- the hub raises all kinds; `fetch` says what is wrong
        logger.debug("%s: its files are not known: %s", repository, first_line(error))
        return "*.gguf"
    sizes = [(file.size or 0, file.rfilename) for file in files if file.rfilename.endswith(".gguf")]
    return min(sizes)[1] if sizes else "*.gguf"


def fetch(repository: str, revision: str | None, cache: str | None, patterns: Sequence[str]) -> Path:
    """Return the snapshot with these files; without network the local one."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 -- only where a model is named on a hub

    try:
        found = snapshot_download(repository, revision=revision, cache_dir=cache, allow_patterns=list(patterns))
    except Exception as error:  # the hub and what it builds on raise errors of all kinds here
        raise EncoderError(explain(repository, revision, error)) from error
    return Path(found)


def explain(repository: str, revision: str | None, error: Exception) -> str:
    """Return what went wrong and what to do, in one sentence."""
    from huggingface_hub import errors  # noqa: PLC0415

    match error:
        case errors.GatedRepoError():  # before its parent class, which means that there is none
            return (
                f"{repository} is gated: ask for access at https://huggingface.co/{repository}, then log in with "
                "hf auth login or set HF_TOKEN"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"there is neither a folder {repository} here nor such a model on the hub; a private one needs "
                "hf auth login or HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return f"{repository} has no revision {revision} on the hub; leave out @{revision} for the newest"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            reason = why_not_fetched(error.__cause__ or error)
            return (
                f"{repository} is neither a folder here, nor whole in the hub's cache, and could not be fetched "
                f"({reason}); fetch it where there is a network, then name its folder or set --clip_cache_path to "
                "a hub cache that holds it"
            )
        case _:
            return f"{repository} could not be fetched from the hub: {first_line(error)}"
