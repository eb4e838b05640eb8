"""Models of torch as ONNX folders in a cache of this machine: made once, then always opened without torch.

Bulk work on a CPU makes them, since OpenVINO encodes several times faster than torch; queries use one that is there.
A damaged one is removed and made again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clip_retrieval.cache_home import find_obstacle
from clip_retrieval.encoder.base import Encoder, Workload
from clip_retrieval.encoder.config import Chosen, EncoderConfig
from clip_retrieval.encoder.converted_places import REMAKING, REMOVED, hub_folder, is_whole, make_room, place
from clip_retrieval.encoder.devices import is_on_cpu
from clip_retrieval.encoder.engines.onnx import open_onnx
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS, read_vocabulary
from clip_retrieval.encoder.formats.openclip_hub import find_tag
from clip_retrieval.encoder.openai_cache import find_openai
from clip_retrieval.encoder.precision import cpu_precisions
from clip_retrieval.encoder.uri import GGUF_HUB_PREFIX, HUB_PREFIX, ModelName
from clip_retrieval.errors import ClipRetrievalError, EncoderError, describe_os_error
from clip_retrieval.installed import is_installed

if TYPE_CHECKING:
    from clip_retrieval.encoder.export.convert import Origin

logger = logging.getLogger(__name__)

UNKEPT: set[str] = set()  # models for which a warning said that the cache cannot be written
FAILED: set[Path] = set()  # places of models that this process could not convert: a second try would take as long


def open_converted(name: ModelName, config: EncoderConfig, workload: Workload) -> Encoder | None:
    """Open a model of torch as its ONNX folder; None if torch is to run it.

    Bulk work converts any model. A query converts a checkpoint that needs no torch for it, which takes less time than
    torch takes to start; of other models it uses what is there.
    """
    if not is_on_cpu(config) or config.precision == "fp16":
        return None
    if workload != "bulk":
        if config.precision not in ("auto", "fp32"):
            return None
        folder = find(name, config, "fp32") or make_light(name, config)
        if folder is None and place(name, config, "fp32") in REMOVED:  # it was just found damaged
            folder = make(name, config, "fp32")
        return None if folder is None else open_folder(folder, name, config, "fp32", workload)
    if not is_installed("openvino"):
        return None
    precision = choose_precision(config)
    folder = find(name, config, precision) or make(name, config, precision)
    return None if folder is None else open_folder(folder, name, config, precision, workload)


def choose_precision(config: EncoderConfig) -> Chosen:
    return cpu_precisions()[0] if config.precision == "auto" else config.precision


def convert_light(name: ModelName, config: EncoderConfig) -> None:
    """Convert a model for bulk work as far as possible without torch and download; raises errors of the model."""
    is_wanted = is_on_cpu(config) and config.precision != "fp16" and is_installed("openvino")
    if not is_wanted or not is_here(name, config.clip_cache_path):
        return
    precision = choose_precision(config)
    if find(name, config, precision) is None and (plain := find_plain(name, config) or make_light(name, config)):
        quantize_for(precision, plain, place(name, config, precision))


def open_folder(folder: Path, name: ModelName, asked: EncoderConfig, precision: Chosen, workload: Workload) -> Encoder:
    runtime = "openvino" if workload == "bulk" else "onnxruntime"
    computed = "bf16" if precision == "int8" and "bf16" in cpu_precisions() else precision.replace("int8", "fp32")
    config = EncoderConfig(clip_model=name.uri, precision=computed, device="cpu")  # type: ignore[arg-type]
    remake = partial(make_again, folder, name, asked, precision)
    encoder = open_onnx(ModelName(name.uri, "onnx", str(folder), runtime), config, workload, remake)
    encoder.info = dataclasses.replace(encoder.info, precision=precision)
    return encoder


def find(name: ModelName, config: EncoderConfig, precision: Chosen) -> Path | None:
    """Return the folder of a model in the cache, and note that it was used; its graphs are compared when opened."""
    folder = place(name, config, precision)
    if not is_whole(folder, ()):
        return None
    try:
        os.utime(folder)
    except OSError:
        logger.debug("%s cannot be marked as used", folder)
    return folder


def find_plain(name: ModelName, config: EncoderConfig) -> Path | None:
    """Return the folder of a model in fp32, from which another one is made."""
    folder = place(name, config, "fp32")
    return find(name, config, "fp32") if is_whole(folder, GRAPHS) else None


def make_again(folder: Path, name: ModelName, config: EncoderConfig, precision: Chosen, damage: str) -> Path:
    """Make a folder with a damaged graph again. Raises EncoderError if that cannot be done."""
    with REMAKING:
        if is_whole(folder, GRAPHS):  # another thread was first
            return folder
        made = make(name, config, precision)
    if made is None:
        raise EncoderError(f"{damage}, and the model cannot be prepared again")
    return made


def make(name: ModelName, config: EncoderConfig, precision: Chosen) -> Path | None:
    """Convert the model into the cache; None, with a line in the log, if that cannot be done.

    Raises EncoderError if the model itself cannot be opened.
    """
    if place(name, config, precision) in FAILED or not can_keep(name, precision):
        return None
    plain = find_plain(name, config) or make_light(name, config)
    if plain is None or precision == "int8":
        tell(name, place(name, config, precision))
    origin, suffix = (None, "") if plain is not None else open_origin(name, config)
    target = place(name, config, precision, suffix)  # with the model's files here now
    try:
        if origin is not None:
            plain = convert_origin(origin, place(name, config, "fp32", suffix))
        if plain is not None:
            quantize_for(precision, plain, target)
        make_room(target)
    except (ClipRetrievalError, OSError, ValueError, RuntimeError) as error:
        if not is_whole(target):  # else another process was first
            FAILED.add(target)
            tell_of_torch(name, precision, error)
            return None
    return target


def can_keep(name: ModelName, precision: Chosen) -> bool:
    """Say whether the cache can be written; if not, a line in the log says so, once for each model."""
    obstacle = find_obstacle()
    if obstacle is not None and name.uri not in UNKEPT:
        UNKEPT.add(name.uri)
        tell_of_torch(name, precision, obstacle)
    return obstacle is None


def tell_of_torch(name: ModelName, precision: Chosen, reason: object) -> None:
    computed = "bf16" if precision == "bf16" else "fp32"
    said = describe_os_error(reason) if isinstance(reason, OSError) else reason
    logger.warning("%s runs on torch in %s, which takes longer: %s", name.uri, computed, said)


def tell(name: ModelName, target: Path) -> None:
    if target not in REMOVED:
        logger.info("%s: preparing it for this CPU, once", name.uri)


def quantize_for(precision: Chosen, plain: Path, target: Path) -> None:
    if precision == "int8" and not is_whole(target):
        from clip_retrieval.encoder.export.onnx_weights import quantize_into

        quantize_into(plain, target, "int8")


def open_origin(name: ModelName, config: EncoderConfig) -> tuple[Origin, str]:
    """Open a model on torch, which takes seconds to load, and return the ending of its folder's name."""
    from clip_retrieval.encoder.export.convert import open_torch

    origin = open_torch(name, config.clip_cache_path)
    # A model whose tokenizer is missing has another folder, since the tokenizer may come later.
    return origin, "" if origin.encoder.info.no_text_reason is None else "-image"


def convert_origin(origin: Origin, target: Path) -> Path:
    from clip_retrieval.encoder.export.convert import convert_into

    if not is_whole(target):
        convert_into(origin, target)
    return target


def make_light(name: ModelName, config: EncoderConfig) -> Path | None:
    """Build the graphs of a checkpoint without torch; None if that cannot be done, and torch has to say why.

    Raises EncoderError if the checkpoint cannot be read.
    """
    checkpoint = read_light(name, config.clip_cache_path)
    if checkpoint is None:
        return None
    from clip_retrieval.encoder.export.light import write_light
    from clip_retrieval.encoder.export.towers import is_buildable

    if not is_buildable(checkpoint) or not can_keep(name, choose_precision(config)):
        return None
    target = place(name, config, "fp32")  # now that its files are here
    tell(name, target)
    try:
        local = name.architecture.removeprefix("local-dir:")
        write_light(checkpoint, target, name.uri, None if local == name.architecture else read_vocabulary(Path(local)))
        make_room(target)
    except (ClipRetrievalError, OSError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        if not is_whole(target):  # else another process was first
            logger.debug("%s is left to torch: %s", name.uri, error)
            return None
    return target


def read_light(name: ModelName, cache: str | None) -> Checkpoint | None:
    """Read a model without torch; None if only torch, or open_clip, can say what it is.

    Raises EncoderError if a self-describing checkpoint cannot be read, or a file is not whole.
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
    """Say whether a model, or something of its repository, is on this machine; needs no network."""
    place, weights = name.architecture, name.weights
    if name.kind == "open_clip" and weights and not Path(weights).exists() and find_openai(name, cache) is None:
        found = find_tag(name.architecture, weights)
        if found is None:
            return False
        place = HUB_PREFIX + found[1]["hf_hub"]
    is_local = not place.startswith((HUB_PREFIX, GGUF_HUB_PREFIX))
    return is_local or (hub_folder(place, cache) / "snapshots").is_dir()
