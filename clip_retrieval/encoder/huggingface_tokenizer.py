"""A tokenizer.json to token ids, by the tokenizers library: neither torch nor transformers is loaded."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_retrieval.encoder.formats.onnx_folder import TOKENIZER, TokenizerSpec
from clip_retrieval.encoder.tokenizer import Tokens, clean_text
from clip_retrieval.errors import EncoderError


class HuggingfaceTokenizer:
    """Cleans as open_clip's HFTokenizer does, then cuts or pads to the context length."""

    def __init__(self, folder: Path, spec: TokenizerSpec) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise EncoderError(
                f"the tokenizer of {folder} needs the package tokenizers; pip install tokenizers"
            ) from error
        self.spec = spec
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # the library raises bare Exceptions
            raise EncoderError(f"{folder / TOKENIZER} cannot be read ({error}); convert the model again") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Return the ids, and how many texts were cut because they did not fit."""
        context = self.spec.context_length
        cleaned = [clean(text, self.spec.clean) for text in texts]
        found = [entry.ids for entry in self.tokenizer.encode_batch(cleaned)]
        long = [i for i, ids in enumerate(found) if len(ids) > context]
        if long:
            self.tokenizer.enable_truncation(context)  # keeps the special tokens at the end
            for i, entry in zip(long, self.tokenizer.encode_batch([cleaned[i] for i in long]), strict=True):
                found[i] = entry.ids
            self.tokenizer.no_truncation()
        rows = np.full((len(texts), context), self.spec.pad_id, dtype=np.int32)
        for row, ids in zip(rows, found, strict=True):
            row[: len(ids)] = ids
        if self.spec.zeroed_id is not None:
            rows[rows == self.spec.zeroed_id] = 0
        return rows, len(long)


def clean(text: str, how: str) -> str:
    """Repair and squeeze a text; `lower` also lowers it, `canonicalize` also removes its ASCII punctuation."""
    cleaned = clean_text(text)
    if how == "whitespace":
        return cleaned
    if how == "lower":
        return cleaned.lower()
    plain = cleaned.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()
    return " ".join(plain.split())
