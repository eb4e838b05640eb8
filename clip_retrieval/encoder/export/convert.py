"""A model of any format to one of another: read, written to a staging place, checked, and only then put into place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.export.compare import BATCHES, Agreement, compare_towers
from clip_retrieval.encoder.export.config import ConvertConfig, Target, Towers, check_source
from clip_retrieval.encoder.export.graph import Stored
from clip_retrieval.encoder.export.tokenizers import write_tokenizer
from clip_retrieval.encoder.export.towers import is_buildable, write_towers
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.clippie import write_clippie
from clip_retrieval.encoder.formats.gguf import write_gguf
from clip_retrieval.encoder.formats.hub import read_named
from clip_retrieval.encoder.formats.huggingface_writer import write_huggingface
from clip_retrieval.encoder.formats.onnx_folder import OnnxFolder, TokenizerSpec, write_about, write_vocabulary
from clip_retrieval.encoder.formats.onnx_sums import write_sums
from clip_retrieval.encoder.formats.openclip_folder import write_openclip
from clip_retrieval.encoder.tokenizer import clip_vocabulary
from clip_retrieval.encoder.uri import DEMO_MODEL, ModelName, parse_uri
from clip_retrieval.errors import EncoderError
from clip_retrieval.storage import made_whole, size_of

LARGEST_ERROR = 1e-4  # bound for an ONNX graph with the same weights
LEAST_COSINE = 0.999  # bound for weights rounded to float16


@dataclass(frozen=True)
class Converted:
    """What was made, and how well it agrees with what it was made from."""

    source: str
    out: str
    format: str
    size_bytes: int
    towers: tuple[str, ...]
    agreement: dict[str, Agreement]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Origin:
    """The model to convert: as an encoder to compare with, and as a checkpoint if it can be one."""

    name: str
    encoder: Encoder
    checkpoint: Checkpoint | None

    def choose_towers(self, wanted: Towers) -> tuple[str, ...]:
        towers = self.encoder.info.towers if wanted == "both" else (wanted,)
        missing = [tower for tower in towers if tower not in self.encoder.info.towers]
        if missing:
            raise EncoderError(f"{self.name} has no {missing[0]} encoder to convert")
        return towers


def run_convert(config: ConvertConfig) -> Converted:
    """Convert a model; raises EncoderError in one sentence, and then leaves nothing behind."""
    out = Path(config.out).expanduser()
    with made_whole(out) as staged:
        origin = open_origin(config)
        towers = origin.choose_towers(config.towers)
        write_target(config, origin, staged)
        is_rounded = config.dtype == "f16" or config.to == "gguf"  # GGUF always has its patch kernel in f16
        agreement = check(origin.encoder, staged, config.to, is_rounded=is_rounded)
        if config.to == "onnx":
            write_sums(staged)
    return Converted(config.source, str(out), config.to, size_of(out), towers, agreement)


def open_origin(config: ConvertConfig) -> Origin:
    name = check_source(config)
    source = parse_uri(f"open_clip:local-dir:{DEMO_MODEL}") if config.source == "demo" else name
    origin = open_torch(source, config.clip_cache_path)
    checkpoint = origin.checkpoint and dataclasses.replace(origin.checkpoint, source=config.source)
    return dataclasses.replace(origin, name=config.source, checkpoint=checkpoint)


def open_torch(name: ModelName, cache_path: str | None) -> Origin:
    """Open a model on its own engine, on the CPU in fp32."""
    encoder = open_engine(
        name, EncoderConfig(clip_model=name.uri, device="cpu", precision="fp32", clip_cache_path=cache_path)
    )
    if name.kind == "checkpoint":
        return Origin(name.uri, encoder, read_named(name.architecture, cache_path))
    from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
    from clip_retrieval.encoder.engines.openclip_checkpoint import describe_model

    assert isinstance(encoder, OpenClipEncoder)
    return Origin(name.uri, encoder, describe_model(encoder.model, encoder.info.preprocess, name.uri))


def convert_into(origin: Origin, out: Path) -> None:
    """Write a model of torch as a new ONNX folder, which appears after a short check."""
    with made_whole(out) as staged:
        write_onnx(origin, staged, origin.encoder.info.towers, "f32")
        check(origin.encoder, staged, "onnx", sizes=(1, 2))
        write_sums(staged)


def write_target(config: ConvertConfig, origin: Origin, staged: Path) -> None:
    """Write the requested format; ONNX takes every model, the others those that a checkpoint can express."""
    if config.to == "onnx":
        write_onnx(origin, staged, origin.choose_towers(config.towers), config.dtype or "f32")
        return
    checkpoint = origin.checkpoint
    if config.to == "open_clip" and checkpoint is None:
        write_model(config, origin, staged)
        return
    if checkpoint is None:
        raise EncoderError(f"{origin.name} has parts that {config.to} has no form for; --to onnx takes every model")
    match config.to:
        case "open_clip":
            write_openclip(checkpoint, staged, dtype=config.dtype or "f32", towers=config.towers)
            write_vocabulary(staged, origin.encoder.info.vocabulary)
        case "hf":
            write_huggingface(checkpoint, staged, dtype=config.dtype or "f32", towers=config.towers)
        case "clippie":
            write_clippie(checkpoint, staged)
        case "gguf":
            write_gguf(checkpoint, staged, clip_vocabulary(), dtype=config.dtype or "f16", towers=config.towers)
        case _:
            assert_never(config.to)


def write_model(config: ConvertConfig, origin: Origin, staged: Path) -> None:
    """Write an open_clip model of any architecture as open_clip's folder, with its own state dict and configuration."""
    from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
    from clip_retrieval.encoder.export.openclip_model import write_openclip_model

    assert isinstance(origin.encoder, OpenClipEncoder)
    if config.towers != "both":
        raise EncoderError(
            f"open_clip always builds both towers, so the {config.towers} tower of {origin.name} alone cannot become "
            "its folder; write it with --to onnx"
        )
    write_openclip_model(origin.encoder, staged, config.dtype or "f32")


def context_length_of(encoder: Encoder) -> int:
    """Return how many tokens a text has: by the tokenizer, or by the model if that is missing."""
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    return int(tokenizer.context_length if tokenizer is not None else encoder.model.context_length)  # type: ignore[attr-defined]


def write_onnx(origin: Origin, folder: Path, towers: tuple[str, ...], stored: Stored) -> None:
    """Build the graphs from the weights, or let torch trace them if the model is of another kind."""
    folder.mkdir()
    info = origin.encoder.info
    if origin.checkpoint is not None and is_buildable(origin.checkpoint):
        write_towers(origin.checkpoint, folder, towers, stored)
        is_cut = origin.checkpoint.family == "clip"
    else:
        trace(origin, folder, towers)
        is_cut = False
    tokenizer = (
        write_tokenizer(origin.encoder, folder, is_cut=is_cut)
        if "text" in towers
        else TokenizerSpec("clip", context_length_of(origin.encoder), is_cut=False)
    )
    about = OnnxFolder(
        source=origin.name,
        fingerprint=info.fingerprint,
        dimension=info.dimension,
        towers=towers,
        preprocess=info.preprocess,
        tokenizer=tokenizer,
        logit_scale=info.logit_scale,
        logit_bias=info.logit_bias,
        no_text_reason=None if "text" in towers else info.no_text_reason,
    )
    write_about(folder, about)
    write_vocabulary(folder, info.vocabulary)


def trace(origin: Origin, folder: Path, towers: tuple[str, ...]) -> None:
    from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
    from clip_retrieval.encoder.export.traced import trace_towers

    encoder = origin.encoder
    assert isinstance(encoder, OpenClipEncoder)
    trace_towers(encoder.model, encoder.info.preprocess, context_length_of(encoder), folder, towers)


def check(
    reference: Encoder, made: Path, target: Target, *, is_rounded: bool = False, sizes: Sequence[int] = BATCHES
) -> dict[str, Agreement]:
    """Compare the result with the original; raises EncoderError if it is another model."""
    uri = f"onnx:{made}?runtime=onnxruntime" if target == "onnx" else str(made)
    other = open_engine(parse_uri(uri), EncoderConfig(clip_model=uri, device="cpu", precision="fp32"))
    found = compare_towers(reference, other, sizes=sizes)
    for tower, agreement in found.items():
        is_same = agreement.least_cosine >= LEAST_COSINE and (is_rounded or agreement.largest_error <= LARGEST_ERROR)
        if not is_same:
            raise EncoderError(
                f"the {tower} encoder does not survive the conversion to {target}: its embeddings differ from the "
                f"original's (least cosine {agreement.least_cosine:.6f}, largest error {agreement.largest_error:.1e}); "
                "nothing was kept"
            )
    return found
