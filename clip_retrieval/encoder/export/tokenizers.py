"""An encoder's tokenizer to what an ONNX folder says of it, with a tokenizer.json if it is not CLIP's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.formats.onnx_folder import TOKENIZER, TokenizerSpec
from clip_retrieval.encoder.tokenizer import BpeTokenizer
from clip_retrieval.errors import EncoderError

CLEANS = ("whitespace", "lower", "canonicalize")  # open_clip's ways to clean a text for a huggingface tokenizer


def write_tokenizer(encoder: Encoder, folder: Path, *, is_cut: bool) -> TokenizerSpec:
    """Describe the tokenizer, and write its file; raises EncoderError if it has no such form."""
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    if isinstance(tokenizer, BpeTokenizer) or type(tokenizer) is open_clip.SimpleTokenizer:
        return TokenizerSpec("clip", tokenizer.context_length, is_cut)
    inner: Any = getattr(tokenizer, "tokenizer", None)
    backend = getattr(inner, "backend_tokenizer", None)
    clean_function: Any = getattr(tokenizer, "clean_fn", None)
    mode: Any = getattr(tokenizer, "tokenizer_mode", "")
    clean = str(getattr(clean_function, "__name__", "")).removeprefix("_clean_")
    is_right = all(getattr(inner, f"{what}_side", "right") == "right" for what in ("padding", "truncation"))
    if backend is None or clean not in CLEANS or mode or not is_right:
        raise EncoderError(
            f"the tokenizer of {encoder.info.uri} has no form outside of transformers ({type(inner).__name__})"
        )
    backend.save(str(folder / TOKENIZER))
    zeroed = inner.sep_token_id if tokenizer.strip_sep_token else None
    return TokenizerSpec("huggingface", tokenizer.context_length, is_cut, inner.pad_token_id, clean, zeroed)
