"""Models of torch as ONNX folders in a cache of this machine: made once, opened without torch ever after.

Bulk work on a CPU makes them, since OpenVINO encodes several times faster than torch; queries take one that is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from clip_retrieval.cache_home import cache_home, hub_repository
from clip_retrieval.encoder.base import Encoder, Workload
from clip_retrieval.encoder.config import Chosen, EncoderConfig
from clip_retrieval.encoder.devices import is_on_cpu
from clip_retrieval.encoder.engines.onnx import open_onnx
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.onnx_folder import ABOUT, read_vocabulary
from clip_retrieval.encoder.formats.openclip_hub import find_tag
from clip_retrieval.encoder.openai_cache import find_openai
from clip_retrieval.encoder.precision import cpu_precisions
from clip_retrieval.encoder.uri import GGUF_HUB_PREFIX, HUB_PREFIX, ModelName
from clip_retrieval.errors import ClipRetrievalError, EncoderError
from clip_retrieval.installed import is_installed
from clip_retrieval.storage import size_of

if TYPE_CHECKING:
    from clip_retrieval.encoder.export.convert import Origin

logger = logging.getLogger(__name__)

KEPT_BYTES = 20 * 2**30  # the models used last; others make room
FAILED: set[Path] = set()  # places of models that this process could not convert: a second try would take as long
FORM = 1  # version of the cache's content; entries of other versions are converted again


def open_converted(name: ModelName, config: EncoderConfig, workload: Workload) -> Encoder | None:
    """Open a model of torch as its ONNX folder; None where torch shall run it.

    Bulk work converts any model. A query converts a checkpoint that needs no torch for it, which takes less time than
    torch takes to start; of the others it takes what is there.
    """
    if not is_on_cpu(config) or config.precision == "fp16":
        return None
    if workload != "bulk":
        if config.precision not in ("auto", "fp32"):
            return None
        folder = find(name, config, "fp32") or make_light(name, config)
        return None if folder is None else open_folder(folder, name, "fp32", workload)
    if not is_installed("openvino"):
        return None
    precision = choose_precision(config)
    folder = find(name, config, precision) or make(name, config, precision)
    return None if folder is None else open_folder(folder, name, precision, workload)


def choose_precision(config: EncoderConfig) -> Chosen:
    return cpu_precisions()[0] if config.precision == "auto" else config.precision


def convert_light(name: ModelName, config: EncoderConfig) -> None:
    """Convert a model for bulk work as far as that goes without torch and download; raises what is wrong with it."""
    is_wanted = is_on_cpu(config) and config.precision != "fp16" and is_installed("openvino")
    if not is_wanted or not is_here(name, config.clip_cache_path):
        return
    precision = choose_precision(config)
    if find(name, config, precision) is None and (plain := find(name, config, "fp32") or make_light(name, config)):
        quantize_for(precision, plain, place(name, config, precision))


def open_folder(folder: Path, name: ModelName, precision: Chosen, workload: Workload) -> Encoder:
    runtime = "openvino" if workload == "bulk" else "onnxruntime"
    computed = "bf16" if precision == "int8" and "bf16" in cpu_precisions() else precision.replace("int8", "fp32")
    config = EncoderConfig(clip_model=name.uri, precision=computed, device="cpu")  # type: ignore[arg-type]
    encoder = open_onnx(ModelName(name.uri, "onnx", str(folder), runtime), config, workload)
    encoder.info = dataclasses.replace(encoder.info, precision=precision)
    return encoder


def find(name: ModelName, config: EncoderConfig, precision: Chosen) -> Path | None:
    """Return the folder of a model in the cache, and note that it was used."""
    folder = place(name, config, precision)
    if not (folder / ABOUT).exists():
        return None
    try:
        os.utime(folder)
    except OSError:
        logger.debug("%s cannot be marked as used", folder)
    return folder


def make(name: ModelName, config: EncoderConfig, precision: Chosen) -> Path | None:
    """Convert the model into the cache; None, with a line in the log, where that cannot be done.

    Raises EncoderError where the model itself cannot be opened.
    """
    if place(name, config, precision) in FAILED:
        return None
    plain = find(name, config, "fp32") or make_light(name, config)
    if plain is None or precision != "fp32":
        logger.info("%s: preparing it for this CPU, once", name.uri)
    origin, suffix = (None, "") if plain is not None else open_origin(name, config)
    target = place(name, config, precision, suffix)  # with the model's files here now
    try:
        if origin is not None:
            plain = convert_origin(origin, place(name, config, "fp32", suffix))
        if plain is not None:
            quantize_for(precision, plain, target)
        make_room(target)
    except (ClipRetrievalError, OSError, ValueError, RuntimeError) as error:
        if not (target / ABOUT).exists():  # else another process was first
            FAILED.add(target)
            computed = "bf16" if precision == "bf16" else "fp32"
            logger.warning("%s runs on torch in %s, which takes longer: %s", name.uri, computed, error)
            return None
    return target


def quantize_for(precision: Chosen, plain: Path, target: Path) -> None:
    if precision == "int8" and not (target / ABOUT).exists():
        from clip_retrieval.encoder.export.onnx_weights import quantize_into

        quantize_into(plain, target, "int8")


def open_origin(name: ModelName, config: EncoderConfig) -> tuple[Origin, str]:
    """Open a model on torch, which takes seconds to load, and return the ending of its folder's name."""
    from clip_retrieval.encoder.export.convert import open_torch

    origin = open_torch(name, config.clip_cache_path)
    # Pictures of a model whose tokenizer is missing lie apart, since that may come later.
    return origin, "" if origin.encoder.info.no_text_reason is None else "-image"


def convert_origin(origin: Origin, target: Path) -> Path:
    from clip_retrieval.encoder.export.convert import convert_into

    if not (target / ABOUT).exists():
        convert_into(origin, target)
    return target


def make_light(name: ModelName, config: EncoderConfig) -> Path | None:
    """Build the graphs of a checkpoint without torch; None where that cannot be done, and torch has to say why.

    Raises EncoderError where the checkpoint cannot be read.
    """
    checkpoint = read_light(name, config.clip_cache_path)
    if checkpoint is None:
        return None
    from clip_retrieval.encoder.export.light import write_light
    from clip_retrieval.encoder.export.towers import is_buildable

    if not is_buildable(checkpoint):
        return None
    logger.info("%s: preparing it for this CPU, once", name.uri)
    target = place(name, config, "fp32")  # now that its files are here
    try:
        local = name.architecture.removeprefix("local-dir:")
        write_light(checkpoint, target, name.uri, None if local == name.architecture else read_vocabulary(Path(local)))
        make_room(target)
    except (ClipRetrievalError, OSError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        if not (target / ABOUT).exists():  # else another process was first
            logger.debug("%s is left to torch: %s", name.uri, error)
            return None
    return target


def read_light(name: ModelName, cache: str | None) -> Checkpoint | None:
    """Read a model without torch; None where only torch, or open_clip, can say what it is.

    Raises EncoderError where a checkpoint that says all of itself cannot be read, or a file is not whole.
    """
    if name.kind == "checkpoint":
        from clip_retrieval.encoder.formats.hub import read_named

        return read_named(name.architecture, cache)
    if name.kind != "open_clip":
        return None
    from clip_retrieval.encoder.formats.openclip_reader import NotFetchedError, read_openclip
    from clip_retrieval.encoder.formats.safetensors import DamagedError

    try:
        return read_openclip(name, cache)
    except (DamagedError, NotFetchedError):
        raise
    except (EncoderError, OSError) as error:
        logger.debug("%s is left to open_clip: %s", name.uri, error)
        return None


def is_here(name: ModelName, cache: str | None) -> bool:
    """Say whether a model, or something of its repository, is on this machine; asks no network."""
    place, weights = name.architecture, name.weights
    if name.kind == "open_clip" and weights and not Path(weights).exists() and find_openai(name, cache) is None:
        found = find_tag(name.architecture, weights)
        if found is None:
            return False
        place = HUB_PREFIX + found[1]["hf_hub"]
    is_local = not place.startswith((HUB_PREFIX, GGUF_HUB_PREFIX))
    return is_local or (hub_folder(place, cache) / "snapshots").is_dir()


def place(name: ModelName, config: EncoderConfig, precision: Chosen, suffix: str = "") -> Path:
    """Return where a model lies: its name, its files and the packages that read or make it say which one it is."""
    versions = [importlib.metadata.version(package) for package in ("open_clip_torch", "torch")]
    weights = find_openai(name, config.clip_cache_path) or name.weights or ""
    files = [file_facts(text, config.clip_cache_path) for text in (name.architecture, weights)]
    facts = (
        *(FORM, name.kind, name.architecture, name.weights, name.options, config.clip_cache_path, versions, files),
        *name.pictures,
    )
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    label = "".join(letter if letter.isalnum() else "-" for letter in name.uri)[-60:].strip("-")
    return cache_folder() / f"{label}-{digest}{suffix}{'-int8' if precision == 'int8' else ''}"


def file_facts(text: str, cache: str | None) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file of a local model, or the revision of one of the hub."""
    path = Path(text.removeprefix("local-dir:")).expanduser()
    if text.startswith((HUB_PREFIX, GGUF_HUB_PREFIX)):
        path = hub_folder(text, cache) / "refs"
    if not text or not path.exists():
        return []
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [(str(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files]


def hub_folder(text: str, cache: str | None) -> Path:
    name = text.removeprefix(HUB_PREFIX).removeprefix(GGUF_HUB_PREFIX).partition("@")[0]
    return hub_repository("/".join(name.split("/")[:2]), cache)


def cache_folder() -> Path:
    """Return the folder of converted models."""
    return cache_home() / "models"


def make_room(kept: Path) -> None:
    """Remove the models that were not used for longest, until the rest is small enough."""
    folders = sorted(kept.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        total += size_of(folder)
        if total > KEPT_BYTES and folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
