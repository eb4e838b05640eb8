"""Texts to CLIP's token ids, with the refusal of texts that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from clip_retrieval.encoder.base import Tokens, check_texts
from clip_retrieval.encoder.tokenizer import BpeTokenizer
from clip_retrieval.errors import EncoderError

CONTEXT_LENGTH = 77


class TooManyTokensError(EncoderError, RuntimeError):
    """A text is longer than the model's context; a RuntimeError, as OpenAI's `tokenize` raises."""


def make_tokens(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, *, truncate: bool = False) -> Tokens:
    """Return ids int32 [n, context_length], zeros after the end of text; raises TooManyTokensError, or cuts."""
    if context_length < 3:
        raise EncoderError(f"context_length must be at least 3, not {context_length}: start, a token, end")
    given = [texts] if isinstance(texts, str) else texts
    check_texts(given)
    tokenizer = bpe_tokenizer(context_length)
    rows, truncated_count = tokenizer.tokenize(given)
    if truncated_count and not truncate:
        counts = [len(tokenizer.encode(text)) + 2 for text in given]
        place = next(i for i, count in enumerate(counts) if count > context_length)
        raise TooManyTokensError(
            f"{given[place][:60]!r} takes {counts[place]} tokens, and there is room for {context_length}; "
            "shorten it, or give truncate=True"
        )
    return rows


@lru_cache(4)
def bpe_tokenizer(context_length: int) -> BpeTokenizer:
    return BpeTokenizer(context_length)
