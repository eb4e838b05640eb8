"""A text, a picture or a vector as a unit embedding, each by its own function: the type of a string is not guessed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Encoder, normalize
from clip_retrieval.encoder.config import AS_BEFORE, REFERENCE, EncoderConfig, PictureConfig
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.encoder.vocabulary import find_unknown_words
from clip_retrieval.errors import ImageError, QueryError
from clip_retrieval.options import from_json, to_json
from clip_retrieval.query.config import SearcherConfig

LEAST_NORM, LARGEST_NORM = 1e-38, 1e38  # of a vector in a query: about what float32 holds
UNIT_ERROR = 1e-6  # of the length of a float32 vector that is already normalized
LEAST_LENGTH = 1e-3  # of a sum relative to its weights; a shorter one is only rounding

QueryKind = Literal["text", "image", "embedding", "row", "sum"]


class Query(msgspec.Struct, frozen=True):
    """A query: its name for users, its embedding, and a warning about its words."""

    text: str  # the text itself, or the name of the picture or vector
    kind: QueryKind
    embedding: NDArray[np.float32]  # [d], unit length
    warning: str | None = None
    own_rows: tuple[int, ...] = ()  # rows of the index in the query, which are not hits


def embed_text(encoder: Encoder, text: str) -> Query:
    """Embed a text; raises QueryError if the model lists its words and knows none of the text."""
    return Query(
        text,
        "text",
        encoder.encode_texts([text])[0],
        explain_unknown_words(text, encoder.info.uri, encoder.info.vocabulary),
    )


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> list[Query | QueryError]:
    """Embed texts in one batch; a text of which the model knows no word is replaced by an error."""
    warnings: list[str | QueryError | None] = []
    for text in texts:
        try:
            warnings.append(explain_unknown_words(text, encoder.info.uri, encoder.info.vocabulary))
        except QueryError as error:
            warnings.append(error)
    known = [text for text, warning in zip(texts, warnings, strict=True) if not isinstance(warning, QueryError)]
    embeddings = iter(encoder.encode_texts(known) if known else ())
    return [
        warning if isinstance(warning, QueryError) else Query(text, "text", next(embeddings), warning)
        for text, warning in zip(texts, warnings, strict=True)
    ]


def read_query_picture(encoder: Encoder, data: bytes, name: str, pictures: PictureConfig) -> NDArray[np.uint8]:
    """Return a picture's pixels [size, size, 3] for the model; raises QueryError."""
    from clip_retrieval.encoder.pictures import read_pixels  # loads Pillow, which texts do not need

    try:
        with counting_warnings():  # otherwise they would be printed
            return read_pixels(data, encoder.info.preprocess, pictures)
    except ImageError as error:
        raise QueryError(f"{name} cannot be used as a picture: {error}") from error


def embed_vector(values: NDArray[Any], name: str) -> Query:
    """Return the query of a vector [d] or [1, d] of any length; raises QueryError if it has no direction."""
    if values.dtype.kind not in "fiu":
        raise QueryError(f"{name} holds {values.dtype}, not numbers")
    if values.ndim != 1 and (values.ndim != 2 or len(values) != 1):
        raise QueryError(f"{name} has the shape {list(values.shape)}; a query is one vector: [d] or [1, d]")
    row = np.asarray(values.reshape(-1), np.float64)
    length = math.sqrt(np.dot(row, row))  # infinity is refused below; `@` would warn of it
    if not LEAST_NORM < length < LARGEST_NORM:  # also false for NaN
        raise QueryError(f"{name} has no direction: it is zero or not finite")
    is_unit = values.dtype == np.float32 and abs(length - 1) < UNIT_ERROR  # dividing again would change its last bits
    return Query(name, "embedding", (row if is_unit else row / length).astype(np.float32))


def check_dimension(query: Query, dim: int) -> None:
    """Raise QueryError if the query's dimension differs from that of the index."""
    own = query.embedding.shape[-1]
    if own != dim:
        raise QueryError(
            f"the query has {own} dimensions, the index has {dim}: they are of different models ({query.text})"
        )


def add_up(name: str, parts: Sequence[tuple[float, Query]]) -> Query:
    """Return the weighted sum of unit embeddings as one query; negative weights subtract.

    Raises QueryError if hardly anything is left, as for a text minus itself.
    """
    total = np.sum([weight * query.embedding.astype(np.float64) for weight, query in parts], axis=0)
    if np.linalg.norm(total) < LEAST_LENGTH * sum(abs(weight) for weight, _ in parts):
        raise QueryError(f"the parts of {name!r} cancel each other out; change a weight, or ask for something else")
    warnings = dict.fromkeys(query.warning for _, query in parts if query.warning)
    own_rows = tuple(row for _, query in parts for row in query.own_rows)
    embedding = normalize(total[None].astype(np.float32))[0]
    return Query(name, "sum", embedding, "; ".join(warnings) or None, own_rows)


def choose_encoder(expected: dict[str, Any] | None, config: SearcherConfig) -> EncoderConfig:
    """Return the model that --clip_model names, else that of the manifest; `check_model` compares their weights.

    The machine chooses the precision: fp16 on a GPU and fp32 on a CPU give embeddings that compare well.
    Raises QueryError if neither names a model.
    """
    model = config.clip_model or (expected["clip_model"] if expected else None)
    if model is None:
        raise QueryError(
            "the index folder does not name its model (was it made by clip-retrieval 2?); give --clip_model"
        )
    return EncoderConfig(clip_model=model, device=config.device, clip_cache_path=config.clip_cache_path)


def check_model(encoder: Encoder, expected: dict[str, Any] | None) -> None:
    """Refuse a model with other weights than the index's model, whatever their names."""
    if not expected:
        return
    info, named = encoder.info, expected["clip_model"]
    if info.fingerprint != expected["fingerprint"] and info.uri != named:
        raise QueryError(
            f"the index was made with the model {named}, and {info.uri} is another; leave out --clip_model, or name a "
            "model with the same weights"
        )
    if info.fingerprint != expected["fingerprint"]:
        raise QueryError(
            f"the weights of {named} have changed since the index was made (fingerprint "
            f"{expected['fingerprint']} -> {info.fingerprint}); embed the data again, or restore the checkpoint"
        )
    if "preprocess" in expected and same_json(dataclasses.asdict(info.preprocess)) != expected["preprocess"]:
        raise QueryError(
            f"{info.uri} has the weights of the index's model {named}, but another preprocessing; restore it, or "
            "embed the data again"
        )


def choose_pictures(expected: dict[str, Any] | None) -> PictureConfig:
    """Return how the pictures of the index were read; the picture of a query is read the same way.

    An index without a manifest is one of clip-retrieval 2, which used the models' own transforms.
    """
    if not expected:
        return REFERENCE
    return from_json(PictureConfig, to_json(AS_BEFORE) | expected.get("pictures", {}))


def same_json(value: object) -> object:
    """Return a value as it is after a round trip through json: tuples become lists."""
    return json.loads(json.dumps(value))


def explain_unknown_words(text: str, model: str, vocabulary: Collection[str] | None) -> str | None:
    """Name the words that a model of few words does not know; None if it knows all, or if its words are not listed.

    Raises QueryError if it knows none of them.
    """
    unknown, knows_any = find_unknown_words(text, vocabulary)
    if not knows_any:
        raise QueryError(
            f"the model {model} knows no word of {text!r}: it was trained on few words, and any answer "
            "would be nonsense. Try words such as dog, pizza, heart, rocket"
        )
    return f"the model does not know: {', '.join(unknown)}" if unknown else None
