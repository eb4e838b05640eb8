"""Folders of ONNX graphs: visual.onnx, textual.onnx, their .data files, and model.json that says what they are.

visual.onnx takes `pixels`, uint8 [batch, size, size, 3]; textual.onnx takes `tokens`, int32 [batch, length]; both give
`embeddings`, float32 [batch, dimension], not normalised. A folder may lack one of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from clip_retrieval.encoder.preprocess import Interpolation, Preprocess, ResizeMode, triple
from clip_retrieval.errors import EncoderError

GRAPHS = {"image": "visual.onnx", "text": "textual.onnx"}
ABOUT, VOCABULARY, TOKENIZER = "model.json", "vocabulary.txt", "tokenizer.json"
FORMAT_VERSION = 1
LEAST_CONTEXT = 3  # start, one token, end

Quantisation = Literal["none", "int8", "int4"]
TokenizerKind = Literal["clip", "huggingface"]


@dataclass(frozen=True)
class TokenizerSpec:
    """How texts become ids: CLIP's own tokenizer, or a tokenizer.json beside the graphs."""

    kind: TokenizerKind
    context_length: int
    is_cut: bool  # whether a batch may be cut to its longest text: the tower is causal
    pad_id: int = 0
    clean: str = "whitespace"  # of huggingface tokenizers: what open_clip does to a text before
    zeroed_id: int | None = None  # of huggingface tokenizers: an id that open_clip replaces by 0


@dataclass(frozen=True)
class OnnxFolder:
    """What model.json says."""

    source: str  # the model that was converted, as it was named
    fingerprint: str  # of the weights that were converted
    dimension: int
    towers: tuple[str, ...]
    preprocess: Preprocess
    tokenizer: TokenizerSpec
    quantisation: Quantisation = "none"
    block_size: int = 0  # of quantised matrices: values that share a scale
    logit_scale: float | None = None
    logit_bias: float | None = None


def write_about(folder: Path, about: OnnxFolder) -> None:
    values = {"format": FORMAT_VERSION, **dataclasses.asdict(about)}
    (folder / ABOUT).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_about(folder: Path) -> OnnxFolder:
    """Read model.json; raises EncoderError where it is missing, newer than this code, or says too little."""
    path = folder / ABOUT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(
            f"{folder} has no readable {ABOUT}, which says what the graphs take; convert the original model with "
            "clip-retrieval convert MODEL OUT --to onnx"
        ) from error
    except ValueError as error:
        raise EncoderError(f"{path} is no JSON; convert the model again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT_VERSION:
        raise EncoderError(f"{path} is not of the format {FORMAT_VERSION}; convert the model again")
    try:
        about = parse_about(values)
    except (TypeError, KeyError, ValueError) as error:
        raise EncoderError(f"{path} is broken ({error}); convert the model again") from error
    missing = [GRAPHS[tower] for tower in about.towers if not (folder / GRAPHS[tower]).is_file()]
    if missing:
        raise EncoderError(f"{folder} lacks {missing[0]}, which its {ABOUT} names; convert the model again")
    return about


def parse_about(values: Mapping[str, Any]) -> OnnxFolder:
    tokenizer = TokenizerSpec(**values["tokenizer"])
    about = OnnxFolder(
        source=str(values["source"]),
        fingerprint=str(values["fingerprint"]),
        dimension=int(values["dimension"]),
        towers=tuple(tower for tower in GRAPHS if tower in values["towers"]),
        preprocess=parse_preprocess(values["preprocess"]),
        tokenizer=tokenizer,
        quantisation=values["quantisation"],
        block_size=int(values["block_size"]),
        logit_scale=finite(values["logit_scale"]),
        logit_bias=finite(values["logit_bias"]),
    )
    if about.dimension < 1 or tokenizer.context_length < LEAST_CONTEXT or not about.towers:
        raise ValueError("dimension, context_length and towers must say something")
    if tokenizer.kind not in get_args(TokenizerKind) or about.quantisation not in get_args(Quantisation):
        raise ValueError(f"{tokenizer.kind} and {about.quantisation} are no tokenizer and quantisation that are known")
    return about


def parse_preprocess(values: Mapping[str, Any]) -> Preprocess:
    (mean, std) = (triple(values[name]) for name in ("mean", "std"))
    found = Preprocess(**{**values, "mean": mean, "std": std})
    known = found.interpolation in get_args(Interpolation) and found.resize_mode in get_args(ResizeMode)
    if not known or found.size < 1 or not all(value > 0 for value in std):
        raise ValueError("the preprocessing is none that is known")
    return found


def finite(value: Any) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError("a logit scale or bias is no number")
    return None if value is None else float(value)


def read_vocabulary(folder: Path) -> frozenset[str] | None:
    """Return the words of vocabulary.txt, what a small model was trained on; None where there is no such file."""
    path = folder / VOCABULARY
    return frozenset(path.read_text(encoding="utf-8").split()) if path.exists() else None
