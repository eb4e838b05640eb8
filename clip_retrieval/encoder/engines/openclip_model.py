"""open_clip's modules: built, filled with weights, and inspected."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.openclip_published import published_preprocess
from clip_retrieval.encoder.engines.openclip_tokenizer import check_transformers
from clip_retrieval.encoder.engines.state_dict import explain_loading, reading_more_files
from clip_retrieval.encoder.formats.checkpoint import FINGERPRINT_VALUES
from clip_retrieval.encoder.formats.openclip_folder import CONFIG_NAME, PreprocessConfig, read_config, to_preprocess
from clip_retrieval.encoder.formats.openclip_hub import explain_not_fetched
from clip_retrieval.encoder.formats.openclip_reader import find_weights
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError, first_line
from clip_retrieval.json_files import check_shape


def create_model(name: ModelName, config: EncoderConfig) -> nn.Module:
    """Build the model on the CPU, in fp32, and load or make its weights."""
    check_transformers(name.architecture)
    is_random, cache = name.kind == "random", config.clip_cache_path
    with (
        torch.random.fork_rng(devices=[]),
        quiet_root(is_random),
        without_chance(is_random),
        reading_more_files(),
        text_configs_in(cache),
    ):
        torch.manual_seed(name.option("seed", 0))
        try:
            model = open_clip.create_model(
                name.architecture,
                pretrained=name.weights,
                cache_dir=cache,
                force_preprocess_cfg=published_preprocess(name) | dict(name.pictures),
                pretrained_text=False,  # random weights need none, and other weights replace it
                require_pretrained=name.kind == "open_clip",  # otherwise a folder without weights gives random ones
            )
        except Exception as error:  # open_clip, the hub and torch raise errors of all kinds here
            raise EncoderError(explain_failure(name, error)) from error
    if is_random:
        clear_unset(model)
    return cast("nn.Module", model.eval())


@contextmanager
def text_configs_in(cache: str | None) -> Iterator[None]:
    """Have open_clip read the configuration of a transformers text tower from the cache that has the weights."""
    module: Any = open_clip.hf_model
    original = getattr(module, "AutoConfig", None)
    if cache is None or original is None:  # transformers is not installed
        yield
        return
    module.AutoConfig = SimpleNamespace(from_pretrained=partial(original.from_pretrained, cache_dir=cache))
    try:
        yield
    finally:
        module.AutoConfig = original


@contextmanager
def without_chance(is_random: bool) -> Iterator[None]:  # noqa: FBT001 -- reads as what it is
    """Have torch fill memory that a constructor leaves unset with NaN, if no file fills it afterwards.

    CoCa's text decoder has such a matrix: otherwise its weights would be what was in memory before, at times NaN.
    """
    memory: Any = torch.utils.deterministic
    was_filled = memory.fill_uninitialized_memory
    was_strict, was_warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if is_random:
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_strict, warn_only=was_warning)
        memory.fill_uninitialized_memory = was_filled


@torch.no_grad()
def clear_unset(model: nn.Module) -> None:
    """Set weights that no constructor set to zero: equal seeds give equal weights."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


@contextmanager
def quiet_root(is_random: bool) -> Iterator[None]:  # noqa: FBT001 -- reads as what it is
    """Suppress what open_clip logs to the root logger: errors that it also raises, and that weights are random."""
    hidden = (logging.ERROR, logging.WARNING) if is_random else (logging.ERROR,)

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno not in hidden

    root = logging.getLogger()
    root.addFilter(is_shown)
    try:
        yield
    finally:
        root.removeFilter(is_shown)


def check_architecture(architecture: str) -> None:
    if architecture.startswith("local-dir:"):
        folder = Path(architecture.removeprefix("local-dir:"))
        if not (folder / CONFIG_NAME).exists():
            raise EncoderError(f"{folder} is not an open_clip folder: {CONFIG_NAME} is missing")
        read_config(folder / CONFIG_NAME)
        find_weights(folder)
    elif not architecture.startswith("hf-hub:") and open_clip.get_model_config(architecture) is None:
        near = [known for known in open_clip.list_models() if known.lower().startswith(architecture.lower()[:5])]
        hint = f"near it: {', '.join(near[:8])}" if near else "open_clip.list_models() names all"
        raise EncoderError(f"open_clip has no architecture {architecture!r}; {hint}")


def explain_failure(name: ModelName, error: Exception) -> str:
    weights = name.weights
    if weights is not None and Path(weights).exists():
        return f"{weights} could not be loaded into {name.architecture}: {explain_loading(error)}"
    if name.architecture.startswith("local-dir:"):
        return f"{name.architecture.removeprefix('local-dir:')} could not be loaded: {explain_loading(error)}"
    if name.kind == "random":
        return f"{name.architecture} could not be built: {first_line(error)}"
    return explain_not_fetched(name, error)


def read_logits(model: nn.Module) -> dict[str, Any]:
    """Return scale and bias from cosines to logits, as EncoderInfo names them."""
    scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
    return {
        "logit_scale": None if scale is None else float(scale.detach().float().exp()),
        "logit_bias": None if bias is None else float(bias.detach().float()),
    }


def read_preprocess(model: nn.Module, source: str) -> Preprocess:
    """Return what open_clip collected from the architecture, the tag and the folder or repository."""
    config = check_shape(open_clip.get_model_preprocess_cfg(model), PreprocessConfig, source, EncoderError)
    return to_preprocess(config, source)


@torch.inference_mode()
def embedding_dimension(model: nn.Module, device: str) -> int:
    """Return the length of an embedding, from a text of the token 1 alone, which needs no tokenizer."""
    length = max(1, int(cast("Any", model).context_length))  # open_clip says 0 for mT5, which takes any number
    tokens = torch.ones(1, length, dtype=torch.int64, device=device)
    return int(cast("Any", model).encode_text(tokens).shape[1])


def fingerprint(model: nn.Module) -> str:
    """Return a digest of every weight's name, shape and a spread of its values."""
    digest = hashlib.sha256(b"quick_gelu" if any(isinstance(part, QuickGELU) for part in model.modules()) else b"")
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # BatchNorm's training counter, not a weight
            continue
        flat = value.detach().flatten()
        step = max(1, flat.numel() // FINGERPRINT_VALUES)
        sample = flat[::step].float().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:32]
