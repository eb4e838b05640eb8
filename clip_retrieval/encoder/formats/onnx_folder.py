"""Folders of ONNX graphs: visual.onnx, textual.onnx, their .data files, and model.json that says what they are.

visual.onnx takes `pixels`, uint8 [batch, size, size, 3]; textual.onnx takes `tokens`, int32 [batch, length]; both give
`embeddings`, float32 [batch, dimension], not normalised. A folder may lack one of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

GRAPHS = {"image": "visual.onnx", "text": "textual.onnx"}
ABOUT, VOCABULARY, TOKENIZER = "model.json", "vocabulary.txt", "tokenizer.json"
FORMAT_VERSION = 1

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
    preprocess, tokenizer = dict(values["preprocess"]), values["tokenizer"]
    for name in ("mean", "std"):
        red, green, blue = (float(value) for value in preprocess[name])
        preprocess[name] = (red, green, blue)
    return OnnxFolder(
        source=str(values["source"]),
        fingerprint=str(values["fingerprint"]),
        dimension=int(values["dimension"]),
        towers=tuple(tower for tower in GRAPHS if tower in values["towers"]),
        preprocess=Preprocess(**preprocess),
        tokenizer=TokenizerSpec(**tokenizer),
        quantisation=values["quantisation"],
        block_size=int(values["block_size"]),
        logit_scale=values["logit_scale"],
        logit_bias=values["logit_bias"],
    )


def read_vocabulary(folder: Path) -> frozenset[str] | None:
    """Return the words of vocabulary.txt, what a small model was trained on; None where there is no such file."""
    path = folder / VOCABULARY
    return frozenset(path.read_text(encoding="utf-8").split()) if path.exists() else None
