"""What was asked for, as a unit embedding: a text, a picture or a vector, each by its own function."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.config import AS_BEFORE, REFERENCE, PictureConfig
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.vocabulary import find_unknown_words
from clip_retrieval.errors import ImageError, QueryError
from clip_retrieval.options import from_json, to_json

QueryKind = Literal["text", "image", "embedding"]


@dataclass(frozen=True)
class Query:
    """A query as given, what kind it is, and a warning where the model cannot know its words."""

    text: str
    kind: QueryKind
    embedding: NDArray[np.float32]  # [d], unit length
    warning: str | None = None


def check_model(encoder: Encoder, expected: dict[str, Any] | None) -> None:
    """Refuse a model that is not the one of the index: weights count, names do not."""
    if not expected:
        return
    info, named = encoder.info, expected["clip_model"]
    if info.fingerprint != expected["fingerprint"] and info.uri != named:
        raise QueryError(
            f"the index is of the model {named}, and {info.uri} is another one; leave out --clip_model, or name a "
            "model with the same weights"
        )
    if info.fingerprint != expected["fingerprint"]:
        raise QueryError(
            f"the index was made with other weights of {named} than those that it names now (fingerprint "
            f"{expected['fingerprint']} -> {info.fingerprint}); embed the data anew, or bring back the checkpoint"
        )
    if "preprocess" in expected and same_json(dataclasses.asdict(info.preprocess)) != expected["preprocess"]:
        raise QueryError(
            f"{info.uri} has the weights of the index's model {named}, but prepares pictures in another way; bring "
            "back its preprocessing, or embed the data anew"
        )


def choose_pictures(expected: dict[str, Any] | None) -> PictureConfig:
    """Return how the pictures of the index were read: a query's is read the same way.

    An index without a manifest is one of clip-retrieval 2, which used the models' own transforms.
    """
    if not expected:
        return REFERENCE
    return from_json(PictureConfig, to_json(AS_BEFORE) | expected.get("pictures", {}))


def same_json(value: object) -> object:
    """Return a value as it comes back from a json file: tuples become lists."""
    return json.loads(json.dumps(value))


def embed_image(encoder: Encoder, path: Path, pictures: PictureConfig) -> NDArray[np.float32]:
    try:
        pixels = read_pixels(path.read_bytes(), encoder.info.preprocess, pictures)
    except (ImageError, OSError) as error:
        raise QueryError(f"{path} cannot be used as a picture: {error}") from error
    row: NDArray[np.float32] = encoder.encode_images(pixels[None])[0]
    return row


def explain_unknown_words(text: str, encoder: Encoder) -> str | None:
    """Say so where the model's vocabulary is known and has no, or not every, word of the query."""
    unknown, knows_any = find_unknown_words(text, encoder.info)
    if not knows_any:
        raise QueryError(
            f"the model {encoder.info.uri} knows no word of {text!r}: it was trained on few words, and any answer "
            "would be nonsense. Try words such as dog, pizza, heart, rocket"
        )
    return f"the model does not know: {', '.join(unknown)}" if unknown else None
