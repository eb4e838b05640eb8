"""What was asked for, as a unit embedding: a text, a picture, or a vector from a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Encoder, normalise
from clip_retrieval.encoder.config import AS_BEFORE, EncoderConfig, PictureConfig
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.vocabulary import find_unknown_words
from clip_retrieval.errors import ImageError, QueryError
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.options import from_json

QueryKind = Literal["text", "image", "embedding"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif")


@dataclass(frozen=True)
class Query:
    """A query as given, what kind it is, and a warning where the model cannot know its words."""

    text: str
    kind: QueryKind
    embedding: NDArray[np.float32]  # [d], unit length
    warning: str | None = None


def kind_of(text: str) -> QueryKind:
    """A name of a file that is there is that file; a picture's name that is not there is an error, not a text."""
    path = Path(text)
    suffix = path.suffix.lower()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a long text is no path
        return "text"
    looks_like_path = "/" in text or " " not in text
    if not is_file:
        if looks_like_path and suffix in (*IMAGE_SUFFIXES, ".npy"):
            raise QueryError(f"there is no file {text}")
        return "text"
    return "embedding" if suffix == ".npy" else "image"


def open_query(text: str, encoder_config: EncoderConfig | None, expected: dict[str, Any] | None) -> Query:
    """Embed the query; `expected` is the index manifest's encoder, which the model must match.

    A text or picture needs a model: the one of the manifest. Raises QueryError and EncoderError.
    """
    kind = kind_of(text)
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # of a path that is no UTF-8
    if kind == "embedding":
        return Query(shown, kind, read_embedding(Path(text)))
    if encoder_config is None:
        raise QueryError(
            "the index folder does not say of which model it is (clip-retrieval 2 made it?); say it with --clip_model"
        )
    encoder = load_encoder(encoder_config, workload="once")
    check_model(encoder, expected)
    if kind == "image":
        return Query(shown, kind, embed_image(encoder, Path(text), choose_pictures(expected)))
    return Query(shown, kind, encoder.encode_texts([shown])[0], explain_unknown_words(shown, encoder))


def choose_encoder(expected: dict[str, Any] | None, config: FilterConfig) -> EncoderConfig | None:
    """Return the model that a flag names, else that of the manifest; whether it is the right one, its weights say.

    The precision of the embeddings is not asked for again: what a GPU or OpenVINO made in half of it is answered
    by whatever this machine computes in.
    """
    model = config.clip_model or (expected["clip_model"] if expected else None)
    if model is None:
        return None
    return EncoderConfig(clip_model=model, device=config.device, clip_cache_path=config.clip_cache_path)


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
    """Return how the pictures of the index were read: a query's is read the same way."""
    described = (expected or {}).get("pictures")
    return from_json(PictureConfig, described) if described else AS_BEFORE


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


def read_embedding(path: Path) -> NDArray[np.float32]:
    """Return the one vector of an npy file [d] or [1, d], normalised."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise QueryError(f"{path} is no readable npy file: {error}") from error
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise QueryError(f"{path} is no readable npy file: it is an archive of several arrays")
    if rows.dtype.kind not in "fiu":
        raise QueryError(f"{path} holds {rows.dtype}, not numbers")
    rows = np.atleast_2d(rows.astype(np.float32))
    if rows.ndim != 2 or len(rows) != 1:
        raise QueryError(f"{path} has the shape {list(rows.shape)}; a query is one vector: [d] or [1, d]")
    if not np.isfinite(rows).all() or not rows.any():
        raise QueryError(f"{path} is no direction: it is zero, or not finite")
    unit: NDArray[np.float32] = normalise(rows)[0]
    return unit


def explain_unknown_words(text: str, encoder: Encoder) -> str | None:
    """Say so where the model's vocabulary is known and has no, or not every, word of the query."""
    unknown, knows_any = find_unknown_words(text, encoder.info)
    if not knows_any:
        raise QueryError(
            f"the model {encoder.info.uri} knows no word of {text!r}: it was trained on few words, and any answer "
            "would be nonsense. Try words such as dog, pizza, heart, rocket"
        )
    return f"the model does not know: {', '.join(unknown)}" if unknown else None
