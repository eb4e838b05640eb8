"""The types that every encoder speaks. n rows, d dimension, s image side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError
from clip_retrieval.words import with_article

Pixels = NDArray[np.uint8]  # [n, s, s, 3]; scaling by mean and std happens in the encoder
Tokens = NDArray[np.int32]  # [n, t]
Embeddings = NDArray[np.float32]  # [n, d], rows of unit length

Workload = Literal["once", "query", "bulk"]  # one batch soon, a few items now and then, or many items fast

USUAL_BATCH = 256  # pictures for one call of a model
GPU_BATCH = 512  # an H200 gains nothing by more, and with ViT-L/14 nothing by more than 64 (benchmarks/RESULTS.md)

BOTH_TOWERS = ("image", "text")
USUAL_LOGIT_SCALE = 100.0  # bound that OpenAI's and most other models reach in training


class TextEmbeddings(NamedTuple):
    """Embeddings of texts, and how many of the texts were cut to the model's context length."""

    rows: Embeddings
    truncated_count: int


@dataclass(frozen=True)
class EncoderInfo:
    """What is known about an encoder: enough to prepare its input, and to recognize it again."""

    uri: str
    dimension: int
    preprocess: Preprocess
    fingerprint: str  # hash of the weights
    precision: str
    device: str
    towers: tuple[str, ...] = BOTH_TOWERS  # towers it has: image, text
    no_text_reason: str | None = None  # why texts cannot be encoded, although the weights have a text tower
    logit_scale: float | None = None  # the factor from cosine to logit; None if the weights do not say it
    logit_bias: float | None = None  # added to logits; models that have it (SigLIP) judge each pair by itself
    vocabulary: frozenset[str] | None = None  # the words it was trained on, if they are known


class Encoder(Protocol):
    """Turns prepared pictures and texts into unit embeddings."""

    info: EncoderInfo

    def encode_images(self, pixels: Pixels) -> Embeddings: ...

    def start_images(self, pixels: Pixels) -> Callable[[], Embeddings]:
        """Begin to encode, and return a function that waits for the embeddings; `pixels` must not change until then."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings: ...

    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        """Encode texts, and count those that are too long for the model."""
        ...

    def encode_tokens(self, tokens: Tokens) -> Embeddings: ...

    is_raw: bool  # whether rows have the length that the model gives them, instead of 1


class EncodesTexts:
    """`encode_texts`, for engines that have `embed_texts`; and the length of the rows of all engines."""

    is_raw = False

    def finish(self, rows: NDArray[np.float32]) -> Embeddings:
        """Return rows of unit length, of a raw encoder unchanged; NaN is an EncoderError."""
        if not self.is_raw:
            return normalize(rows)
        check_finite(rows)
        return rows

    def start_text_side(self, texts: Sequence[str] = ()) -> None:
        """Open in threads what the first texts would wait for, and embed these; most engines do that on demand."""

    def encode_texts(self: Encoder, texts: Sequence[str]) -> Embeddings:
        return self.embed_texts(texts).rows


class StartsNothing:
    """`start_images`, for engines whose `encode_images` returns only when it is done."""

    def start_images(self: Encoder, pixels: Pixels) -> Callable[[], Embeddings]:
        rows = self.encode_images(pixels)
        return lambda: rows


def raw_copy(encoder: Encoder) -> Encoder:
    """Return an encoder with the same weights, whose rows have the length that the model gives them."""
    copied = copy.copy(encoder)
    copied.is_raw = True
    return copied


def check_tower(info: EncoderInfo, tower: str) -> None:
    """Raise EncoderError if the model was saved without this tower, or its texts lack their tokenizer."""
    if tower not in info.towers and tower == "text" and info.no_text_reason is not None:
        raise EncoderError(f"{info.no_text_reason}; pictures do not need it: --enable_text False")
    if tower not in info.towers:
        raise EncoderError(f"{info.uri} has no {tower} encoder: it was saved without one")


def check_texts(texts: Sequence[str]) -> None:
    """Raise EncoderError for anything but a list of str."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise EncoderError(f'expected a list of texts such as ["a dog"], got {with_article(type(texts).__name__)}')
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise EncoderError(
            f'expected a list of texts such as ["a dog"], got a list with {with_article(type(wrong).__name__)} in it'
        )


def check_finite(rows: NDArray[np.float32]) -> None:
    if not np.isfinite(rows).all():
        raise EncoderError(
            "the model gives embeddings that are not numbers (NaN or infinite): its weights are damaged, or "
            "--precision is too low for it"
        )


def normalize(rows: NDArray[np.float32]) -> Embeddings:
    """Return the rows divided by their length; rows of length zero stay zero."""
    check_finite(rows)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), dtype=np.float32)
