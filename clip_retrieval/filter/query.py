"""What was asked for, as a unit embedding: a text, a picture, or a vector from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import normalise
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.picture_suffixes import IMAGE_SUFFIXES
from clip_retrieval.errors import QueryError
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.query.embed import (
    Query,
    QueryKind,
    check_model,
    choose_pictures,
    embed_image,
    explain_unknown_words,
)


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
        if looks_like_path and suffix in IMAGE_SUFFIXES | {".npy"}:
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
