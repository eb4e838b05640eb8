"""Folders of ONNX graphs: visual.onnx, textual.onnx, their .data files, and model.json that says what they are.

visual.onnx takes `pixels`, uint8 [batch, size, size, 3]; textual.onnx takes `tokens`, int32 [batch, length]; both give
`embeddings`, float32 [batch, dimension], not normalized. A folder may lack one of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError
from clip_retrieval.json_files import check_shape, read_json

GRAPHS = {"image": "visual.onnx", "text": "textual.onnx"}
ABOUT, VOCABULARY, TOKENIZER = "model.json", "vocabulary.txt", "tokenizer.json"
FORMAT_VERSION = 1
AGAIN = "convert the model again"

Dimension = Annotated[int, Meta(ge=1, le=65536)]
ContextLength = Annotated[int, Meta(ge=3, le=65536)]  # at least start, one token, end
Tower = Annotated[str, Meta(pattern="^(image|text)$")]
Quantization = Literal["none", "int8", "int4"]
TokenizerKind = Literal["clip", "huggingface"]


@dataclass(frozen=True)
class TokenizerSpec:
    """How texts become ids: CLIP's own tokenizer, or a tokenizer.json next to the graphs."""

    kind: TokenizerKind
    context_length: ContextLength
    is_cut: bool  # whether a batch may be cut to its longest text: the tower is causal
    pad_id: int = 0
    clean: str = "whitespace"  # open_clip's text cleaning before a huggingface tokenizer
    zeroed_id: int | None = None  # id of a huggingface tokenizer that open_clip replaces by 0


@dataclass(frozen=True)
class OnnxFolder:
    """What model.json says."""

    source: str  # the name of the model that was converted
    fingerprint: str  # hash of the source weights
    dimension: Dimension
    towers: Annotated[tuple[Tower, ...], Meta(min_length=1)]
    preprocess: Preprocess
    tokenizer: TokenizerSpec
    quantisation: Quantization = "none"
    block_size: int = 0  # number of values that share a scale in quantized matrices
    logit_scale: float | None = None
    logit_bias: float | None = None
    no_text_reason: str | None = None  # why there is no text tower, although the converted model has one


def write_about(folder: Path, about: OnnxFolder) -> None:
    values = {"format": FORMAT_VERSION, **dataclasses.asdict(about)}
    (folder / ABOUT).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_about(folder: Path) -> OnnxFolder:
    """Read model.json; raises EncoderError if it is missing, newer than this code, or incomplete."""
    path = folder / ABOUT
    if not path.exists():
        raise EncoderError(
            f"{folder} has no {ABOUT}, which says what the graphs take; convert the original model with "
            "clip-retrieval convert MODEL OUT --to onnx"
        )
    try:
        values = read_json(path, dict[str, Any], EncoderError)
        if values.get("format") != FORMAT_VERSION:
            raise EncoderError(f"{path} is not of the format {FORMAT_VERSION}")
        about = check_shape(values, OnnxFolder, path, EncoderError)
    except EncoderError as error:
        raise EncoderError(f"{error}; {AGAIN}") from error
    numbers = (*about.preprocess.mean, about.logit_scale or 0, about.logit_bias or 0)
    if about.preprocess.size < 1 or min(about.preprocess.std) <= 0 or not all(map(math.isfinite, numbers)):
        raise EncoderError(f"{path} has a size, std, mean, logit_scale or logit_bias that is out of range; {AGAIN}")
    missing = [GRAPHS[tower] for tower in about.towers if not (folder / GRAPHS[tower]).is_file()]
    if missing:
        raise EncoderError(f"{folder} lacks {missing[0]}, which its {ABOUT} names; {AGAIN}")
    return about


def write_vocabulary(folder: Path, words: frozenset[str] | None) -> None:
    """Write the words that a small model was trained on, if they are known."""
    if words is not None:
        (folder / VOCABULARY).write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")


def read_vocabulary(folder: Path) -> frozenset[str] | None:
    """Return the words of vocabulary.txt, what a small model was trained on; None if there is no such file."""
    path = folder / VOCABULARY
    try:
        return frozenset(path.read_text(encoding="utf-8").split()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} holds no words in UTF-8; {AGAIN}") from error
